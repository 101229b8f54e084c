"""The blocks of a model one after another, each for all batches; what came before is kept, not computed again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lrft.core.batch import Batch
from lrft.model.causal_lm import CausalLM
from lrft.registry.errors import UsageError, first_line


class InTurn:
    """A pass of the body in which one block computes, on what the block before gave for the same batch.

    Everything around the blocks (embedding, masks, positions, final norm) is the model's own code, in every pass.

    Args:
        blocks: paths, in the order in which they compute.

    Raises:
        UsageError: computed so, the blocks do not give what the model gives.
    """

    def __init__(self, model: CausalLM, blocks: Sequence[str], batches: Sequence[Batch]) -> None:
        self.model, self.batches = model, batches
        self.blocks = [model.hf.get_submodule(name) for name in blocks]
        self._held: list[Any] = [None] * len(batches)
        self._seen: list[Any] = [None] * len(batches)
        self._now = 0
        if batches and blocks:
            self._prove()

    @contextmanager
    def only(self, block: int) -> Iterator[Iterator[Batch]]:
        """Let passes over the given batches compute this block alone."""
        own = [vars(module).get("forward") for module in self.blocks]
        for place, module in enumerate(self.blocks):
            module.forward = self._computing(module.forward) if place == block else self._given(place < block)
        try:
            yield self._counted()
        finally:
            for module, forward in zip(self.blocks, own, strict=True):
                del module.forward
                if forward is not None:
                    module.forward = forward

    def advance(self, block: int) -> None:
        """Compute the block with the weights that it has now; what it gives is what the next one gets."""
        with self.only(block) as batches:
            for batch in batches:
                self._hidden(batch)
        self._held = self._seen
        self._seen = [None] * len(self.batches)

    def _counted(self) -> Iterator[Batch]:
        for number, batch in enumerate(self.batches):
            self._now = number
            yield batch

    def _computing(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def compute(*inputs: Any, **named: Any) -> Any:
            self._seen[self._now] = forward(*inputs, **named)
            return self._seen[self._now]

        return compute

    def _given(self, before: bool) -> Callable[..., Any]:
        """What a block that does not compute gives: the input of the one that does, or after it its output."""

        def give(*inputs: Any, **named: Any) -> Any:
            return self._held[self._now] if before else self._seen[self._now]

        return give

    def _prove(self) -> None:
        """Compare on the first batch, before anything is rounded."""
        whole, self.batches = self.batches, self.batches[:1]
        expected = self._hidden(whole[0])
        try:
            for block in range(len(self.blocks) - 1):
                self.advance(block)
            with self.only(len(self.blocks) - 1) as batches:
                found = [self._hidden(batch) for batch in batches]
            why = "" if torch.equal(found[0], expected) else "they then give something else"
        except Exception as error:  # whatever a model's own code raises
            why = first_line(error)
        self.batches, self._held, self._seen = whole, [None] * len(whole), [None] * len(whole)
        if why:
            raise UsageError(
                f"--requantize: the blocks of {type(self.model.hf).__name__} do not compute one after another ({why}), "
                "so they cannot be rounded one after another; merge without it"
            )

    @torch.no_grad()
    def _hidden(self, batch: Batch) -> Tensor:
        """What the body gives, where it is a number."""
        return self.model.hidden(batch.to(self.model.device)).nan_to_num()
