"""NEFTune: uniform noise on the input embeddings, in training alone.

    e' = e + u,  u uniform in [-a, a],  a = alpha / sqrt(L d)

with L the tokens of the document that a token is in, packed or not, and d the width of the embedding; padding gets
none.

Source: Jain et al., "NEFTune: Noisy Embeddings Improve Instruction Finetuning", ICLR 2024, arXiv 2310.05914.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from lrft.core.batch import Batch
from lrft.core.context import current_batch, current_seed
from lrft.model.causal_lm import CausalLM
from lrft.registry.errors import RecipeError

KEY = "train.neftune"


def add_noise(model: CausalLM, alpha: float) -> None:
    """Let the input embedding give e' in training, for as long as the model lives.

    Raises:
        RecipeError: virtual tokens go before the documents, which are no embeddings of text.
    """
    if model.virtual:
        raise RecipeError(
            "the adapter puts virtual tokens before every document, whose rows get no noise; remove it", KEY
        )

    def noisy(embedding: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        batch, seed = current_batch(), current_seed()
        if not embedding.training or batch is None or seed is None:
            return output  # evaluation, calibration, or a reference that is no training
        return output + noise(batch, output, alpha, seed)

    model.hf.get_input_embeddings().register_forward_hook(noisy)


def noise(batch: Batch, embedded: Tensor, alpha: float, seed: int) -> Tensor:
    """The noise of a micro-batch, in the shape and dtype of its embedded tokens (..., d).

    Args:
        seed: of the micro-batch; another generator than that of dropout is seeded with what follows from it.
    """
    reach = torch.zeros(batch.input_ids.shape)
    for row, start, end in batch.documents:
        reach[row, start:end] = alpha / ((end - start) * embedded.shape[-1]) ** 0.5
    generator = torch.Generator(embedded.device).manual_seed(_own(seed))
    drawn = torch.rand(embedded.shape, generator=generator, device=embedded.device)
    scale = reach.to(embedded.device, non_blocking=True).view(*embedded.shape[:-1], 1)
    return ((2 * drawn - 1) * scale).to(embedded.dtype)


def _own(seed: int) -> int:
    """A seed whose draws have nothing in common with those of torch's own generator, which dropout is drawn by."""
    return int.from_bytes(hashlib.sha256(f"lrft embedding noise {seed}".encode()).digest()[:7], "big")
