"""Rows that an adapter puts in the place of the input embedding's, as a head that is tied to it reads them."""

from __future__ import annotations

from torch import Tensor, nn

from lrft.core.block import AdaptedBlock, OfParameters
from lrft.core.rows import scored_with
from lrft.model.hf import HF


def tied_rows(hf: HF) -> tuple[Tensor, Tensor] | None:
    """Rows (k, hidden) and their ids (k,) while the adapter is on; None without any, or where the head has its own."""
    embedding, head = hf.get_input_embeddings(), hf.get_output_embeddings()
    if not isinstance(embedding, AdaptedBlock) or not embedding.enabled or head is None:
        return None
    adapter = embedding.adapter
    if not isinstance(adapter, OfParameters) or head.weight is not embedding.weight:
        return None
    return adapter.vocabulary_rows()


def tie_rows(hf: HF) -> None:
    """Let a head that is tied to the input embedding answer with such rows, wherever it is called."""
    head = hf.get_output_embeddings()
    if head is None or tied_rows(hf) is None:
        return

    def score(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        now = tied_rows(hf)
        return output if now is None else scored_with(*now, inputs[0], output, getattr(module, "bias", None))

    head.register_forward_hook(score)
