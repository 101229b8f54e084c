"""How a model makes logits of its last hidden states: found by asking it, proved, or refused."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lrft.model.asked import reference
from lrft.model.causal_lm import CausalLM
from lrft.model.hf import TextConfig
from lrft.model.probe import batch_of, looks_ahead
from lrft.registry.errors import RecipeError, first_line

# Keys of configurations that hold c of c * tanh(logits / c).
SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
TOLERANCE = 0.05  # of the largest logit: what bfloat16 may cost
SCALE_TOLERANCE = 2e-3  # of a measured scale: it is averaged over thousands of logits


@torch.no_grad()
def settle(model: CausalLM) -> None:
    """Find the soft cap and the scale of the head, and prove that our logits are then the model's own.

    Args:
        model: with eager attention, which every architecture has, wherever it will run.

    Raises:
        RecipeError: it has no head, or makes its logits in another way.
    """
    if model.hf.get_output_embeddings() is None:
        raise RecipeError(
            f"{type(model.hf).__name__} has no head over the vocabulary to train with", "model.name"
        )
    config = model.hf.config.get_text_config()
    model.softcap = next((c for name in SOFT_CAPS if (c := getattr(config, name, None))), None)
    theirs, ours = _logits(model, config)
    if not bool(torch.isfinite(theirs).all()):
        raise RecipeError(
            f"the logits of {type(model.hf).__name__} are no finite numbers; its weights are damaged, or "
            "overflow in model.dtype",
            "model.name",
        )
    if not _close(ours, theirs):
        why = (
            "is no causal language model: later tokens change what is predicted before them"
            if looks_ahead(model)
            else "makes its logits of its last hidden states in a way that lrft does not know"
        )
        raise RecipeError(
            f"{type(model.hf).__name__} {why}; docs/models.md lists families that train", "model.name"
        )


def _logits(model: CausalLM, config: TextConfig) -> tuple[Tensor, Tensor]:
    """The model's own logits and ours, of a few tokens; the scale of the head is set where it makes them alike."""
    ids = [1, 2, 3, 4]
    try:
        theirs = reference(model, torch.tensor([ids]))
        batch = batch_of([[ids]]).to(model.device)
        ours = model(batch)
        if not _close(ours, theirs):
            model.scale = _scale(config, ours, theirs)
            ours = model(batch)
        return theirs, ours
    except RecipeError:
        raise
    except Exception as error:  # whatever a model's own code raises
        reason = first_line(error)
        exact = model.dtype == torch.float32
        raise RecipeError(
            f"transformers cannot run {type(model.hf).__name__} on token ids alone ({type(error).__name__}: "
            f"{reason}); {'name a text model' if exact else 'write float32, or name another model'}",
            "model.name" if exact else "model.dtype",
        ) from None


def _close(ours: Tensor, theirs: Tensor) -> bool:
    error = (ours.float() - theirs.float()).abs().max() / theirs.float().abs().max().clamp_min(1e-6)
    return bool(error < TOLERANCE)


def _scale(config: TextConfig, ours: Tensor, theirs: Tensor) -> float:
    """The number of the configuration, or its inverse, that our logits must be multiplied by; 1 where none fits."""
    a, b = ours.double().flatten(), theirs.double().flatten()
    measured = float((a * b).sum() / (a * a).sum())
    near = min(_candidates(config), key=lambda value: abs(value / measured - 1), default=1.0)
    return near if abs(near / measured - 1) < SCALE_TOLERANCE else 1.0


def _candidates(config: TextConfig) -> Iterator[float]:
    for value in config.to_dict().values():
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            yield from (float(value), 1 / value, value / config.hidden_size)
