"""Neural low-rank adapter search: ranks of groups of sites, drawn in every step and chosen in the end."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from typing import TypedDict

import torch

from lrft.core.callback import TimedMethod
from lrft.core.elastic import Elastic
from lrft.core.in_layer import in_layer
from lrft.core.run import Run
from lrft.core.stages import Planner
from lrft.registry.axes import ALLOCATORS
from lrft.registry.config import Annotated, Field, Literal, MethodConfig, Problem, RecipeView, model_validator
from lrft.registry.errors import RecipeError

Choice = dict[str, int]  # group -> the place of its rank in `ranks`


class State(TypedDict):
    """What a resume needs."""

    ranks: dict[str, int]
    losses: dict[str, float]


@ALLOCATORS.register
class NLS(TimedMethod, Planner):
    """Train one adapter at ranks drawn for every step and group of sites, then choose a rank for each group.

        r_g ~ uniform over `ranks`, once per optimizer step and group g
        W'  = W + s B[:, :r_g] A[:r_g],   s = alpha / r_max

    with r_max = `adapter.rank`, the highest of `ranks`. A group is the sites of one layer whose names end in one of the
    patterns of one list of `groups`; a site that none matches is a group alone. Between the steps and in the end the
    chosen ranks are shown: with `choose: heuristic` those in the middle of `ranks`, element (n - 1) // 2 of the n in
    descending order, with `choose: largest` the highest. With `choose: hill_climbing` the search begins with the
    heuristic's after the last step, moves a group to a neighbouring rank, and keeps what has a lower loss on the
    held-out rows, `evaluations` times.

    Shapes: A (r_max, in), B (out, r_max) of `adapter: elastic_lora`. The function at step 0 is untouched.
    Trains: of the adapter, the components that are shown in the step; hidden ones have a gradient of 0, and are moved
    by momentum and weight decay alone.
    State: none but what was chosen, as draws are a function of (seed, step). `hill_climbing` costs `evaluations` passes
    over the held-out rows.
    Source: Munoz et al., "Shears: Unstructured Sparsity with Neural Low-rank Adapter Search", NAACL 2024, industry
    track, arXiv 2404.10934, and the authors' code (IntelLabs/Hardware-Aware-Automated-Machine-Learning): `ranks`,
    `groups`, the heuristic, the constant scale.
    Departures: the base is not pruned (their first stage). Settled here: a neighbour is one group, drawn, at the next
    higher or lower rank, drawn where there are both; their code leaves the search to others. Draws are one number a
    group and step, never within a forward pass.
    """

    aliases = {
        "nls neural_low_rank_adapter_search": "adapter: elastic_lora\nallocate: nls",
        "shears": "adapter: elastic_lora\nallocate: nls",
    }
    requires = {"sub_ranks", "kept_base", "one_stage"}

    config: Config

    class Config(MethodConfig):
        ranks: list[Annotated[int, Field(gt=0)]] = Field(
            [32, 24, 16], min_length=2, description="ranks that a group may have"
        )
        groups: list[list[str]] = Field(
            [["q_proj", "k_proj", "v_proj"], ["up_proj"], ["down_proj"]],
            description="patterns of site names that share a rank in their layer",
        )
        choose: Literal["heuristic", "hill_climbing", "largest"] = "heuristic"
        evaluations: int = Field(
            20, gt=0, description="configurations that hill climbing scores beside the first"
        )

        @model_validator(mode="after")
        def _different(self) -> NLS.Config:
            if len(set(self.ranks)) < len(self.ranks):
                raise ValueError(f"ranks: {self.ranks} has a rank twice")
            return self

        def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
            """An adapter of another rank, and a search without rows to score."""
            if recipe["adapter"] is not None and recipe["adapter.rank"] != max(self.ranks):
                message = f"the highest of them is the rank that the adapter has; write adapter.rank: {max(self.ranks)}"
                yield Problem("allocate.ranks", message)
            if self.choose == "hill_climbing" and recipe["train.eval_every"] is None:
                message = "hill_climbing scores held-out rows; give data.eval and train.eval_every: STEPS"
                yield Problem("allocate.choose", message)

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.ranks_of = sorted(config.ranks, reverse=True)
        self.groups: dict[str, list[tuple[str, Elastic]]] = {}
        self.chosen: dict[str, int] = {}
        self.losses: dict[str, float] = {}

    def start(self, run: Run) -> None:
        self.groups = {}
        for _, module in run.adapted():
            adapter = module.adapter
            if not isinstance(adapter, Elastic) or adapter.capacity != self.ranks_of[0]:
                message = f"draws ranks up to {self.ranks_of[0]}, which {adapter.site.name} does not have"
                raise RecipeError(f"{message}; choose adapter elastic_lora of that rank", "allocate.method")
            self.groups.setdefault(self.group_of(adapter.site.name), []).append((adapter.site.name, adapter))
        if not self.chosen:
            self._keep(self.first())

    def group_of(self, site: str) -> str:
        """The name of a site's group: its layer and the patterns, or the site itself."""
        for patterns in self.config.groups:
            if any(fnmatch.fnmatchcase(site, p) or fnmatch.fnmatchcase(site, f"*.{p}") for p in patterns):
                layer = in_layer(site)
                return f"{layer.path if layer else ''} {' '.join(patterns)}"
        return site

    def first(self) -> Choice:
        """What is shown before anything was searched."""
        place = 0 if self.config.choose == "largest" else (len(self.ranks_of) - 1) // 2
        return dict.fromkeys(self.groups, place)

    def before_step(self, run: Run) -> None:
        drawn = torch.randint(len(self.ranks_of), (len(self.groups),), generator=run.generator).tolist()
        self._show(choice := dict(zip(self.groups, drawn, strict=True)))
        run.record(rank_total=sum(self._ranks(choice).values()))

    def after_step(self, run: Run) -> None:
        choice = self.first()
        if run.at_an_end and self.config.choose == "hill_climbing":
            choice = self._climb(run, choice)
        self._keep(choice)

    def finish(self, run: Run) -> None:
        run.summary["ranks"] = dict(self.chosen)
        run.summary |= {"searched": dict(self.losses)} if self.losses else {}

    def _climb(self, run: Run, choice: Choice) -> Choice:
        """The best configuration that hill climbing comes to from `choice`."""
        best = self._loss(run, choice)
        began = best
        for _ in range(self.config.evaluations):
            neighbour = self._neighbour(choice, run.generator)
            loss = self._loss(run, neighbour)
            if loss < best:
                best, choice = loss, neighbour
        self.losses = {"heuristic": began, "chosen": best}
        return choice

    def _neighbour(self, choice: Choice, generator: torch.Generator) -> Choice:
        """The configuration with one group at the next higher or lower rank."""
        group = list(choice)[int(torch.randint(len(choice), (), generator=generator))]
        beside = [
            place for place in (choice[group] - 1, choice[group] + 1) if 0 <= place < len(self.ranks_of)
        ]
        return choice | {group: beside[int(torch.randint(len(beside), (), generator=generator))]}

    def _loss(self, run: Run, choice: Choice) -> float:
        """Nats per supervised token of the held-out rows."""
        assert run.score is not None, "the recipe was refused without rows"
        self._show(choice)
        rows = run.score()
        return sum(loss for loss, _ in rows) / sum(tokens for _, tokens in rows)

    def _keep(self, choice: Choice) -> None:
        self._show(choice)
        self.chosen = self._ranks(choice)

    def _ranks(self, choice: Choice) -> dict[str, int]:
        """Site -> its rank."""
        return {
            site: self.ranks_of[choice[group]] for group, sites in self.groups.items() for site, _ in sites
        }

    def _show(self, choice: Choice) -> None:
        for group, sites in self.groups.items():
            for _, adapter in sites:
                adapter.show(torch.arange(adapter.capacity) < self.ranks_of[choice[group]])

    def state_dict(self) -> State:
        return {"ranks": self.chosen, "losses": self.losses}

    def load_state_dict(self, state: State) -> None:
        self.chosen, self.losses = dict(state["ranks"]), dict(state["losses"])
