"""Pages, words and the joined past, each against the plain thing it stands for."""

from __future__ import annotations

import random

import pytest
import torch

from lrft.serve.pages import Pages
from lrft.serve.words import Words


def test_matrices_in_pages_come_back_whatever_was_given_back_between():
    random.seed(0)
    pages = Pages(8 * 4 * 60, 8, torch.float32, torch.device("cpu"))
    assert pages.total == 60
    held: list[tuple[torch.Tensor, object]] = []
    scattered = 0
    for _ in range(300):
        rows, columns = random.randint(1, 6), random.choice([3, 8, 17])
        if pages.needed(rows, columns) <= pages.free and random.random() < 0.7:
            matrix = torch.randn(rows, columns)
            placed = pages.put(matrix)
            scattered += not isinstance(placed.pages, range)
            held.append((matrix, placed))
        elif held:
            pages.give_back(held.pop(random.randrange(len(held)))[1])
        for matrix, placed in held:
            assert torch.equal(pages.read(placed), matrix)
    assert scattered > 3
    for _, placed in held:
        pages.give_back(placed)
    assert pages.free == 60
    with pytest.raises(MemoryError):
        pages.put(torch.randn(61, 8))


def test_words_are_told_whole_and_none_of_a_stop():
    text = "Grüße 🙂 an alle! STOP und mehr"
    tokens = list(text.encode())

    def decode(ids) -> str:
        return bytes(ids).decode(errors="replace")

    for stops, expected in (((), text), (("STOP",), "Grüße 🙂 an alle! "), (("xyz", "alle"), "Grüße 🙂 an ")):
        words, pieces = Words(decode, stops), []
        for token in tokens:
            pieces.append(words.add(token))
            if words.stopped:
                break
        assert "".join([*pieces, words.end()]) == expected
        assert words.stopped == bool(stops)
        assert all("\ufffd" not in piece for piece in pieces)
    words = Words(decode, ("STOPPED",))
    assert "".join(words.add(token) for token in b"go STOP") == "go " and words.end() == "STOP"
