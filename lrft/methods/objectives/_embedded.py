"""Perturbations of the input embeddings at the positions of prompts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lrft.core.batch import Batch
from lrft.methods.objectives._latent import flat_states, input_embedding


def embedding_of(model: nn.Module) -> nn.Embedding:
    """The embedding of tokens; that of positions of an image may stand before it."""
    return next(one for one in input_embedding(model).modules() if isinstance(one, nn.Embedding))


class Prompts:
    """Where the prompts of a batch stand.

    Attributes:
        places: (P,) flat indices into the B * L positions of the tokens through the one that predicts the first target.
    """

    def __init__(self, batch: Batch) -> None:
        length, learnt = batch.input_ids.shape[1], set(batch.supervised.tolist())
        places: list[int] = []
        for row, start, end in batch.documents:
            first = next((at for at in range(row * length + start, row * length + end) if at in learnt), None)
            places += [] if first is None else range(row * length + start, first + 1)
        self.positions = batch.input_ids.numel()
        self.places = torch.tensor(places, dtype=torch.int64).to(batch.input_ids.device)


@contextmanager
def moved(embedding: nn.Module, prompts: Prompts, delta: Tensor) -> Iterator[None]:
    """Let the embedding give its output with `delta` (P, d) added at the prompts."""

    def add(_: nn.Module, inputs: object, output: Tensor) -> Tensor:
        flat = flat_states(output, prompts.positions)
        return flat.index_add(0, prompts.places, delta.to(flat.dtype)).view(output.shape)

    handle = embedding.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
