"""Several adapters beside one base, in Python: switched, weighted and put on top of one another between passes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from lrft.api.combining.parents import read_parents, recipe_of
from lrft.build.adapt import adapt
from lrft.build.dataset import read_text
from lrft.build.text import Text
from lrft.core.combine import Part, together
from lrft.export.pairs import Pair
from lrft.export.served import with_pairs
from lrft.model.causal_lm import CausalLM
from lrft.model.load import load_model
from lrft.recipe.schema import Recipe
from lrft.registry.did_you_mean import did_you_mean
from lrft.registry.errors import UsageError
from lrft.training.device import make_accelerator


class Adapters:
    """A base that is loaded once, and adapters of it by name.

    Args:
        paths: name -> run, checkpoint of a run, or PEFT folder.
        recipe: says the base and the data; by default that of the first that is a run.
        trust_remote_code: let code run that comes with the base model.

    Attributes:
        model: the base alone, outside of `use`.
        text: tokenizer and data of the recipe.

    Raises:
        UsageError: one cannot be read, or is of another base.
        NotMergeable: one is no change of the weights of layers.
    """

    def __init__(
        self, paths: Mapping[str, Path | str], recipe: Recipe | None = None, trust_remote_code: bool = False
    ) -> None:
        found = recipe or recipe_of(list(paths.values()))
        if found is None:
            raise UsageError(
                "recipe: none of these adapters is a run, so nothing says the base; give a recipe"
            )
        dense = load_model(found.model, trust_remote_code=trust_remote_code, seed=found.train.seed, sums=True)
        read = read_parents(list(paths.values()), found, dense)
        del dense
        self.parts: dict[str, dict[str, Part]] = dict(zip(paths, (one.parts for one in read), strict=True))
        plain = {
            key: value
            for key, value in found.model_dump(mode="json").items()
            if key not in ("init", "restart")
        }
        self.recipe = Recipe.model_validate(
            {**plain, "adapter": None, "model": {**plain["model"], "adapters": []}}
        )
        device = make_accelerator(found.train.device, found.model.dtype).device
        self.model = adapt(
            self.recipe, device=device, trust_remote_code=trust_remote_code, trains=False
        ).model
        self.model.eval()
        self.text: Text = read_text(self.recipe, training=False, trust_remote_code=trust_remote_code)

    @contextmanager
    def use(self, weights: str | Mapping[str, float]) -> Iterator[CausalLM]:
        """The model with one adapter, or with the weighted sum of some: W + sum_t w_t delta_t.

        Within another `use` both are added.

        Raises:
            UsageError: there is no such adapter, or its weight is no finite number.
        """
        chosen = {weights: 1.0} if isinstance(weights, str) else dict(weights)
        for name, weight in chosen.items():
            if not math.isfinite(weight):
                raise UsageError(f"weight {weight} of {name!r}: give a finite number")
            if name not in self.parts:
                raise UsageError(f"no adapter {name!r} here{did_you_mean(name, self.parts)}")
        sites = dict.fromkeys(site for name in chosen for site in self.parts[name])
        pairs = {}
        for site in sites:
            there = [name for name in chosen if site in self.parts[name]]
            parts = [self.parts[name][site] for name in there]
            pairs[site] = Pair(*together(parts, [chosen[name] for name in there]))
        modules = [(site, self.model.hf.get_submodule(site)) for site in sites]
        with with_pairs(modules, pairs, self.model.device):
            yield self.model
