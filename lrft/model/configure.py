"""How a loaded model runs: recomputed, compiled, with norms, gates and rotations that are fused."""

from __future__ import annotations

from lrft.model.causal_lm import CausalLM
from lrft.model.fused import fuse
from lrft.recipe.sections import ModelSection


def configure(model: CausalLM, section: ModelSection, trains: bool = True) -> list[str]:
    """Turn on activation checkpointing (never the reentrant kind), compilation and Liger, as the recipe says.

    What is not compiled whole has its norms, gates and rotations fused one by one.

    Returns:
        Which of these three stay as the model's own code has them.
    """
    if section.activation_checkpointing:
        # The reentrant kind drops the graph of routed adapters' penalties without a word.
        model.hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if section.compile:
        model.compile()
        return []
    return [kind for kind, count in fuse(model.hf, trains and section.liger).items() if count == 0]
