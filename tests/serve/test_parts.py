"""Pages, words and the joined past, each against the plain thing it stands for."""

from __future__ import annotations

import random

import pytest
import torch
from torch.nn import functional as F

from lrft.serve.pages import Pages
from lrft.serve.products import Products
from lrft.serve.store import Loaded
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


def test_rows_go_through_their_adapters_also_where_a_layer_is_given_the_tokens_of_all_as_one():
    """OPT's fc1 and a shared expert of Qwen-MoE see (rows * length, in)."""
    torch.manual_seed(0)
    pages = Pages(8 * 4 * 60, 8, torch.float32, torch.device("cpu"))
    layer, sites = torch.nn.Linear(8, 6), ("fc1",)
    pairs = [(torch.randn(2, 8), torch.randn(2, 6)) for _ in range(2)]
    groups = [
        (Loaded(str(place), {"fc1": (pages.put(A), pages.put(B))}), rows)
        for place, ((A, B), rows) in enumerate(zip(pairs, (slice(0, 1), slice(2, 4)), strict=True))
    ]
    products, x = Products(pages), torch.randn(4, 5, 8)
    expected = layer(x).detach()
    for (A, B), (_, rows) in zip(pairs, groups, strict=True):
        expected[rows] += x[rows] @ A.T @ B
    with torch.no_grad(), products.on([(site, layer) for site in sites]):
        for given in (x, x.flatten(0, 1)):
            with products.of(groups, 4):
                torch.testing.assert_close(layer(given).view(4, 5, 6), expected)
        with products.of(groups[:1], 1):  # one row, of which the first token alone had the adapter
            A, B = pairs[0]
            torch.testing.assert_close(layer(x[0]), F.linear(x[0], layer.weight, layer.bias) + x[0] @ A.T @ B)
        with (
            products.of(groups, 4),
            pytest.raises(RuntimeError, match="fc1 is not given the tokens of every row"),
        ):
            layer(x.flatten(0, 1)[:7])
