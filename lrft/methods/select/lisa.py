"""LISA: a few decoder layers, drawn anew every so often, train beside the embeddings and the head."""

from __future__ import annotations

import torch
from torch import nn

from lrft.core.params import ParamInfo
from lrft.core.run import Run
from lrft.methods.select._layers import Selection, layers, train_only
from lrft.registry.axes import SELECTORS
from lrft.registry.config import Field, Literal, Sequence
from lrft.registry.errors import RecipeError


@SELECTORS.register
class LISA(Selection):
    """Layerwise importance sampling: random layers train, and all that is outside the layers always does.

        before steps 0, K, 2 K, ...:  the n layers that train ~ uniform over the subsets of n of the L layers

    with K = `every`, n = `active`. A layer that is not drawn has no gradient and keeps its values to the last bit; its
    optimizer state is deleted. `moments: reset` forgets all optimizer state at a draw, `moments: keep` only that of
    layers frozen again. The learning rate goes on over a draw.

    Shapes: those of the model. Changes nothing at step 0.
    Trains: the n drawn layers, and embeddings, head and final norm in every step, where `trainable` names them. Between
    two steps everything that the recipe trains requires gradients again, so it is saved whole.
    State: with AdamW 8 bytes per number of (outside + active layers), constant over time; of the method itself none, as
    the draw is a function of (seed, step).
    Source: Pan et al., "LISA: Layerwise Importance Sampling for Memory-Efficient Large Language Model Fine-Tuning",
    NeurIPS 2024, arXiv 2403.17919, and its code in LMFlow.
    Departures: `moments: reset` forgets every moment at a draw, as in the paper's runs, which trained each interval in
    a process of its own; `moments: keep` does so for layers that are frozen again alone. LMFlow's callback keeps all
    states, which grow to those of full training.
    """

    aliases = {
        "lisa layerwise_importance_sampling": "adapter: null\ntrainable: full\nselect: lisa",
        "lisa_n_layers lisa_activated_layers": "adapter: null\ntrainable: full\nselect: {method: lisa, active: 2}",
        "lisa_step_interval lisa_interval_steps": "adapter: null\ntrainable: full\nselect: {method: lisa, every: 20}",
    }
    requires = {"base_weights", "first_order"}

    config: Config

    class Config(Selection.Config):
        active: int = Field(2, gt=0, description="layers that train at a time")
        every: int = Field(20, gt=0, description="optimizer steps between two draws")
        moments: Literal["reset", "keep"] = Field(
            "reset",
            description="at a draw: reset forgets all optimizer state, keep only that of layers frozen again",
        )

        def check_length(self, total_steps: int, ranks: Sequence[int] = ()) -> None:
            """Refuse a run that ends with the first draw."""
            self.refuse_one(self.every, total_steps, "draw")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.layers: list[list[ParamInfo]] = []
        self.outside: list[nn.Parameter] = []

    def start(self, run: Run) -> None:
        self.layers = layers(run)
        self.outside = [info.param for info in run.parameters if not info.block]
        if self.config.active > len(self.layers):
            message = (
                f"{self.config.active} layers are more than train ({len(self.layers)}); use at most that"
            )
            raise RecipeError(message, "select.active")

    def before_step(self, run: Run) -> None:
        drawn = self.drawn(run.seed, run.step)
        active = {info.param for index in drawn for info in self.layers[index]} | set(self.outside)
        if run.step % self.config.every == 0:
            frozen = [info.param for info in run.parameters if info.param not in active]
            run.reset_optimizer(None if self.config.moments == "reset" else frozen)
            run.record(active_layers=drawn)
        train_only(run, active)

    def drawn(self, seed: int, step: int) -> list[int]:
        """Indices of the layers that train in the step after `step` finished ones."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step // self.config.every)
        return sorted(torch.randperm(len(self.layers), generator=generator)[: self.config.active].tolist())
