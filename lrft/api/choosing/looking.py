"""A base as a recipe's rows look to it: states of questions, and which class the answer of each is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lrft.api.choosing.costs import training_tokens
from lrft.api.choosing.probe import Learning, learn
from lrft.api.data.measure import Measuring, Part
from lrft.api.data.ranking import draw_rows, read_whole, usable_rows
from lrft.build.classes import Classes, read_classes
from lrft.build.identify import identify_base
from lrft.build.steps import train_data
from lrft.build.text import Text
from lrft.core.data_selection import Need
from lrft.evaluation.progress import EvaluationBar
from lrft.model.causal_lm import CausalLM
from lrft.model.load import load_model
from lrft.recipe.schema import Recipe
from lrft.registry.errors import RecipeError
from lrft.training.device import make_accelerator

FEWEST = 20  # held-out rows


@dataclass(frozen=True)
class States:
    """What is measured: the last hidden state of each question."""

    need: Need = "states"
    dimensions: int = 0


@dataclass(frozen=True)
class Looked:
    """A base and rows, as far as they are looked at.

    Attributes:
        pool, held: training and held-out rows as classes.
        states, held_states: (rows, d) of their questions.
        total_rows: training rows, those included that are not looked at.
        training_tokens: that a training on all of them passes.
        question_tokens: of a held-out question with its answer, on average.
    """

    recipe: Recipe
    text: Text
    model: CausalLM
    pool: Classes
    held: Classes
    states: Tensor
    held_states: Tensor
    total_rows: int
    training_tokens: float
    question_tokens: float

    def learning(self, seed: int) -> Learning:
        """The head's curve."""
        gold, held = torch.tensor(self.pool.gold), torch.tensor(self.held.gold)
        return learn(self.states, gold, self.held_states, held, len(self.pool.names), seed)

    def near(self, most: int) -> Tensor:
        """(held-out rows, `most`) training rows in the order of the cosine of the states, the nearest first."""
        a, b = (torch.nn.functional.normalize(one.double(), dim=1) for one in (self.held_states, self.states))
        found: Tensor = (a @ b.T).argsort(dim=1, descending=True, stable=True)[:, :most]
        return found


@dataclass(frozen=True)
class Looking:
    """How bases are looked at.

    Attributes:
        out: folder of what is measured.
        rows: training and held-out ones at most; more are drawn from by `seed`.
    """

    out: Path
    rows: int
    seed: int
    trusted: bool
    show: EvaluationBar

    def at(self, recipe: Recipe, name: str) -> Looked:
        """Read the rows and measure their questions, into files that begin with `name`.

        Raises:
            RecipeError, DataError: there are no held-out rows, too few, or no classes.
        """
        text = read_whole(recipe, self.trusted, self.show)
        if text.scored is None or text.scored_rows is None:
            raise RecipeError(
                "strategies are compared on held-out rows; name some here or in data.split", "data.eval"
            )
        rows, encoded = usable_rows(text)
        pool = read_classes(text, *draw_rows(rows, encoded, self.rows, self.seed), "data.train")
        kept = draw_rows(text.scored_rows, text.scored, self.rows, self.seed)
        held = read_classes(text, *kept, "data.eval", pool.names)
        if len(held.gold) < FEWEST:
            said = f"{len(held.gold)} held-out rows can be looked at; give {FEWEST} or more"
            raise RecipeError(said, "data.eval")
        device = make_accelerator(recipe.train.device, recipe.model.dtype).device
        model = load_model(
            recipe.model, device=device, trust_remote_code=self.trusted, seed=recipe.train.seed
        ).to(device)
        states, held_states = (
            self._states(recipe, text, model, which, f"{name}.{part}.jsonl")
            for which, part in ((pool, "training"), (held, "held-out"))
        )
        tokens = training_tokens(recipe, train_data(recipe, text, packing=_packs(recipe, model)))
        question = sum(len(row.input_ids) for row in held.whole) / len(held.whole)
        return Looked(recipe, text, model, pool, held, states, held_states, len(rows), tokens, question)

    def _states(self, recipe: Recipe, text: Text, model: CausalLM, which: Classes, file: str) -> Tensor:
        asks = States()
        measuring = Measuring(
            recipe, text, asks, seed=self.seed, trust_remote_code=self.trusted, progress=self.show
        )
        part = Part(which.prompts, which.rows.where, self.out / file)
        return measuring.measured(model, part, asks.need, identify_base(recipe.model, model), 1)


def _packs(recipe: Recipe, model: CausalLM) -> bool:
    """Whether rows are put together, as a plan has it: by default where the model can be told where one begins."""
    packing = recipe.train.packing
    return model.takes_positions if packing is None else packing
