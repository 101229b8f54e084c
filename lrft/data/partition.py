"""Which rows each client of a federation holds: a pure function of labels, seed and settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random

from lrft.registry.errors import DataError

BINS = 10  # classes by length
TRIES = 1000  # draws until every client has a row

Share = list[int]
"""Indices of the rows of a client, rising."""


def even(rows: Sequence[int], clients: int, seed: int) -> list[Share]:
    """Rows drawn alike: shares differ by one row at most.

    Raises:
        DataError: there are more clients than rows.
    """
    _enough(rows, clients)
    order = list(rows)
    Random(f"{seed} even").shuffle(order)
    return [sorted(order[client::clients]) for client in range(clients)]


def by_value(rows: Sequence[int], values: Sequence[str], clients: int) -> list[Share]:
    """Every value belongs to one client: the most frequent first, each to the client with the fewest rows so far.

    Args:
        values: one for each of `rows`.

    Raises:
        DataError: there are more clients than values.
    """
    counts = Counter(values)
    if len(counts) < clients:
        raise DataError(
            f"federate.partition.column: holds {len(counts)} values for {clients} clients; write federate.clients: "
            f"{len(counts)}, or another column"
        )
    held = [0] * clients
    owner: dict[str, int] = {}
    for value, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        owner[value] = min(range(clients), key=lambda client: (held[client], client))
        held[owner[value]] += count
    shares: list[Share] = [[] for _ in range(clients)]
    for row, value in zip(rows, values, strict=True):
        shares[owner[value]].append(row)
    return shares


def dirichlet(
    rows: Sequence[int], labels: Sequence[str], clients: int, alpha: float, seed: int
) -> list[Share]:
    """Of every label, shares of the clients drawn from Dirichlet(alpha); drawn again until every client has a row.

    Args:
        labels: one for each of `rows`.

    Raises:
        DataError: some client would hold nothing, however often it is drawn.
    """
    _enough(rows, clients)
    classes: dict[str, list[int]] = {}
    for row, label in zip(rows, labels, strict=True):
        classes.setdefault(label, []).append(row)
    for attempt in range(TRIES):
        draw = Random(f"{seed} dirichlet {attempt}")
        shares: list[Share] = [[] for _ in range(clients)]
        for label in sorted(classes):
            of_class = list(classes[label])
            draw.shuffle(of_class)
            for client, part in enumerate(_cut(of_class, _proportions(draw, clients, alpha))):
                shares[client] += part
        if all(shares):
            return [sorted(share) for share in shares]
    raise DataError(
        f"federate.partition: with alpha {alpha} some of {clients} clients hold no row of {len(rows)} in {TRIES} "
        "draws; write a larger alpha, fewer clients, or by: even"
    )


def by_length(lengths: Sequence[int]) -> list[str]:
    """A class for every row: which tenth of all lengths its own is in."""
    order = sorted(range(len(lengths)), key=lambda place: (lengths[place], place))
    found = [""] * len(lengths)
    for place, row in enumerate(order):
        found[row] = str(place * BINS // len(lengths))
    return found


def _enough(rows: Sequence[int], clients: int) -> None:
    if len(rows) < clients:
        raise DataError(
            f"federate.clients: {clients} clients share {len(rows)} rows; write at most {len(rows)}"
        )


def _proportions(draw: Random, clients: int, alpha: float) -> list[float]:
    """A draw from Dirichlet(alpha, ..., alpha)."""
    drawn = [draw.gammavariate(alpha, 1.0) for _ in range(clients)]
    total = sum(drawn)
    if (
        not total
    ):  # every draw of a tiny alpha was too small for a float: one client has it all, as in the limit
        drawn[draw.randrange(clients)] = total = 1.0
    return [value / total for value in drawn]


def _cut(items: list[int], proportions: Sequence[float]) -> list[list[int]]:
    """Consecutive parts of the items, ends rounded down."""
    ends: list[int] = []
    reached = 0.0
    for proportion in proportions[:-1]:
        reached += proportion
        ends.append(min(int(reached * len(items)), len(items)))
    return [items[begin:end] for begin, end in zip([0, *ends], [*ends, len(items)], strict=True)]
