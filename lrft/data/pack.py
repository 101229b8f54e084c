"""Packing documents into rows of a fixed number of tokens."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best fit: each document, in the given order, goes to the fullest row that still holds it.

    Args:
        lengths: tokens of each document, between 1 and `capacity`.
        capacity: tokens of a row.

    Returns:
        Indices into `lengths`, row by row, in the order the rows were opened; every index exactly once.
    """
    rows: list[list[int]] = []
    open_rows: dict[int, list[int]] = {}  # room left -> rows with just that much, newest last
    rooms: list[int] = []  # the keys of open_rows, sorted; at most `capacity` of them
    for index, length in enumerate(lengths):
        if not 0 < length <= capacity:
            raise ValueError(f"document {index} has {length} tokens, a row holds 1 to {capacity}")
        at = bisect_left(rooms, length)
        if at == len(rooms):
            row, room = len(rows), capacity
            rows.append([])
        else:
            room = rooms[at]
            row = open_rows[room].pop()
            if not open_rows[room]:
                del open_rows[room], rooms[at]
        rows[row].append(index)
        left = room - length
        if left:
            if left not in open_rows:
                open_rows[left] = []
                insort(rooms, left)
            open_rows[left].append(row)
    return rows
