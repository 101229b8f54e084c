"""The training peaks of one recipe after the other, whose modules are made once where they are the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack

from lrft.build.measure import planned
from lrft.build.peaks import PeaksOf, backend_of
from lrft.model.causal_lm import CausalLM
from lrft.recipe.schema import Recipe

# What of a recipe may differ where the modules do not: how many rows there are, what is computed again, what updates.
WITHIN = (
    "train.batch_size",
    "train.gradient_accumulation",
    "train.max_length",
    "model.activation_checkpointing",
    "optimizer",
)


class TrainingPeaks:
    """The bytes of training's peak, with full rows, of one recipe after the other.

    Recipes that differ in `WITHIN` alone have their modules in common. Of each the optimizer, the counts, the moments
    and the tries of layers are its own, but for tries where another had the same rows. Modules that keep something of
    a try, as a second one shows, are made anew for every recipe.

    Args:
        device: `cpu` or `cuda`, where they would run.
        build: the base model of a recipe, around a `Skeleton`.
        opened: gives the models back at its end.
    """

    def __init__(self, device: str, build: Callable[[Recipe], CausalLM], opened: ExitStack) -> None:
        self.device, self.build, self.opened = device, build, opened
        self.made: dict[str, PeaksOf | None] = {}

    def total(self, recipe: Recipe, limit: int) -> int:
        """Of a recipe on a device with so many bytes.

        Raises:
            RecipeError: what `peaks_of` raises.
        """
        return self._of(recipe).training((), limit)[0]["total"]

    def _of(self, recipe: Recipe) -> PeaksOf:
        name = _modules_of(recipe)
        if name not in self.made:
            made = self._make(recipe)
            self.made[name] = made if made.repeats() else None
        shared = self.made[name]
        return self._make(recipe) if shared is None else shared.of(recipe)

    def _make(self, recipe: Recipe) -> PeaksOf:
        model = self.build(recipe)
        model.hf.set_attn_implementation(backend_of(recipe, self.device))
        found = self.opened.enter_context(planned(recipe, model))
        return PeaksOf(recipe, found, self.device)


def _modules_of(recipe: Recipe) -> str:
    """What a recipe says of its base, its adapters and everything else that is not `WITHIN`."""
    plain = recipe.model_dump(mode="json")
    for key in WITHIN:
        section, _, name = key.partition(".")
        inner = plain[section]
        assert isinstance(inner, dict)
        plain[section] = {k: v for k, v in inner.items() if name and k != name}
    return json.dumps(plain, sort_keys=True)
