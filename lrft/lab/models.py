"""Base models without weights and what recipes measure on them: each built, each counted, once."""

from __future__ import annotations

import json

from lrft.build.measure import measure
from lrft.build.measured import Measured
from lrft.core import stop
from lrft.model.causal_lm import CausalLM
from lrft.model.load import load_model
from lrft.recipe.schema import Recipe
from lrft.recipe.sections import ModelSection
from lrft.registry.axes import AXES


class Models:
    """Base models without weights, and the counts of recipes on them.

    Args:
        trusted: whether code that comes with a base model may run.
    """

    def __init__(self, trusted: bool = False) -> None:
        self.trusted = trusted
        self.built: dict[str, CausalLM] = {}
        self.counted: dict[str, Measured] = {}

    def get(self, section: ModelSection) -> CausalLM:
        """The model of a recipe's `model` section."""
        key = section.model_dump_json()
        if key not in self.built:
            self.built[key] = load_model(section, trust_remote_code=self.trusted, meta=True)
        return self.built[key]

    def weigh(self, recipe: Recipe, optimizer: bool = True) -> Measured:
        """The counts and bytes of `measure`.

        Args:
            optimizer: count its state too, which takes longest.
        """
        key = f"{optimizer} {_what_counts(recipe)}"
        stop.poll()
        if key not in self.counted:
            self.counted[key] = measure(recipe, self.get(recipe.model), optimizer)
        return self.counted[key]


def _what_counts(recipe: Recipe) -> str:
    """What decides what trains and what it holds, or whether that is refused; not the rate, which changes neither."""
    kept = recipe.model_dump(mode="json", include={"model", "quantization", "trainable", "allocate", *AXES})
    kept["optimizer"].pop("lr")
    kept["max_length"] = recipe.train.max_length
    return json.dumps(kept, sort_keys=True)
