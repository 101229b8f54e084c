"""Perturbations of the residual stream at the positions of prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lrft.core.batch import Batch
from lrft.registry.errors import RecipeError

Output = Tensor | tuple[Tensor, ...]


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The model's blocks, in order: the outermost list of modules beside the input embedding.

    A model that sees has others before it, which text never runs through.
    """
    embedding = input_embedding(model)
    path = next(name for name, module in model.named_modules() if module is embedding)
    around = model.get_submodule(path.rpartition(".")[0])
    return list(next(module for module in around.modules() if isinstance(module, nn.ModuleList)))


def input_embedding(model: nn.Module) -> nn.Module:
    """What tokens are embedded by."""
    hf: Any = getattr(model, "hf", model)
    found: nn.Module = hf.get_input_embeddings()
    return found


def flat_states(hidden: Tensor, positions: int) -> Tensor:
    """Hidden states (..., d) of a batch of so many positions, (positions, d).

    Raises:
        RecipeError: there are others, so that nobody knows where the prompts stand.
    """
    flat = hidden.reshape(-1, hidden.shape[-1])
    if flat.shape[0] != positions:
        raise RecipeError(
            "puts virtual tokens before every document, whose prompts cannot be perturbed; choose another adapter",
            "adapter.method",
        )
    return flat


class Prompts:
    """Where the prompts of a batch of pairs stand: a perturbed vector for each token of what both answers share.

    Attributes:
        count: perturbed vectors at a layer, P.
        places: (2 P,) flat indices into the B * L positions of the batch.
        vectors: (2 P,) which vector is added there.
    """

    def __init__(self, batch: Batch) -> None:
        length, learnt = batch.input_ids.shape[1], set(batch.supervised.tolist())
        places: list[int] = []
        vectors: list[int] = []
        self.count, self.positions = 0, batch.input_ids.numel()
        starts = [row * length + start for row, start, _ in batch.documents]
        ends = [row * length + end for row, _, end in batch.documents]
        # Up to the position that predicts the first target, which is the prompt's last token.
        prompts = [
            next(at for at in range(start, end) if at in learnt) + 1 - start
            for start, end in zip(starts, ends, strict=True)
        ]
        for k in range(0, len(starts), 2):
            shared = min(prompts[k : k + 2])
            for start in starts[k : k + 2]:
                places += range(start, start + shared)
                vectors += range(self.count, self.count + shared)
            self.count += shared
        device = batch.input_ids.device
        self.places, self.vectors = torch.tensor(places).to(device), torch.tensor(vectors).to(device)

    def moved(self, hidden: Tensor, delta: Tensor) -> Tensor:
        """Hidden states (..., d) with the vectors (P, d) added at the prompts."""
        flat = flat_states(hidden, self.positions)
        added = delta.index_select(0, self.vectors).to(flat.dtype)
        return flat.index_add(0, self.places, added).view(hidden.shape)


@contextmanager
def perturbed(layers: Sequence[nn.Module], prompts: Prompts, deltas: Sequence[Tensor]) -> Iterator[None]:
    """Let every one of these layers give its output with its vectors added."""

    def hook_of(delta: Tensor) -> Callable[[nn.Module, object, Output], Output]:
        def add(_: nn.Module, inputs: object, output: Output) -> Output:
            if isinstance(output, tuple):
                return (prompts.moved(output[0], delta), *output[1:])
            return prompts.moved(output, delta)

        return add

    handles = [
        layer.register_forward_hook(hook_of(delta)) for layer, delta in zip(layers, deltas, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
