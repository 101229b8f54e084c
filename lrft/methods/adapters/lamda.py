"""LaMDA: a frozen projection, a trained core, and a second projection that freezes column by column."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lrft.core.adapter import Adapter, Branch, PeftForm
from lrft.core.callback import TimedMethod
from lrft.core.params import Site
from lrft.core.peft import lora_keys
from lrft.core.run import Run
from lrft.methods.adapters.lora import LoRA
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import Field, Iterator, Problem, RecipeView
from lrft.registry.json import Json

EPSILON = 1e-9  # 0.7 * 10 is a little more than 7


def lamda_form_keys(config: LaMDA.Config, with_start: bool) -> dict[str, Json]:
    """A plain LoRA of the same rank, S folded into A."""
    return lora_keys(config.rank, config.alpha, config.dropout, config.rslora)


def lamda_form_tensors(adapter: LaMDA, start: Adapter | None) -> dict[str, Tensor]:
    """S A and B."""
    assert start is None, "no init takes a start off the base for this method"
    return {"A": (adapter.S @ adapter.get_buffer("A")).detach(), "B": adapter.B.detach().clone()}


@ADAPTERS.register
class LaMDA(LoRA):
    """Low-dimensional adaptation: a trained core between a frozen projection and one that freezes gradually.

        y  = x W^T + b + s ((drop(x) A^T) S^T) B^T
        W' = W + s B S A
        after t of T steps the first floor(r t / (`frozen_by` T)) columns of B rest, at most r

    with r = `rank`, s = `alpha` / r (`alpha` / sqrt(r) with `rslora: true`), drop dropout of probability `dropout`;
    from step `frozen_by` T on S alone trains. A column that rests keeps its values to the last bit: it has no gradient,
    and neither momentum nor weight decay moves it. When all of B rests, its optimizer state is given up. T is the
    length that the run was planned with; a run made longer thaws nothing. `rank_pattern` and `alpha_pattern` as in
    `lora`.

    Shapes: A (r, in) ~ U(-1/sqrt(in), 1/sqrt(in)), frozen; S (r, r) ~ U(-1/sqrt(r), 1/sqrt(r)), B (out, r) = 0, so
    W' = W at step 0.
    Trains: r^2 + r out numbers per site at first, r^2 from step `frozen_by` T on. A is saved with them. The input is
    not kept for the backward pass, only x A^T, r numbers a token.
    Source: Azizi et al., "LaMDA: Large Model Fine-Tuning via Spectrally Decomposed Low-Dimensional Adaptation", 2024,
    arXiv 2406.12832, and the authors' code (ArminAzizi98/LaMDA), whose structure and start these are.
    Departures: settled here: the r in the number of columns, which the code lacks, so that there about 1 / `frozen_by`
    columns rest at the end of a run and never all, as the paper has it; t are finished steps, the code counts the one
    that is taken; the code sets gradients to 0 alone, so that momentum and weight decay go on. The paper's
    start from singular vectors of W is in no release, and which of them, and what S starts as, is not known: A is
    drawn, as in the code, and no `init` is offered. LaMDA++, ranks by spectrum, is left out for the same reason.
    Advice: the scripts have `rank: 64`, `alpha: 16`, `dropout: 0.1`, a learning rate of 3e-4.
    """

    provides = {"adapters", "mergeable", "linear_delta"}
    requires = {"one_stage", "first_order"}
    roles = {"S": "core", "B": "lora_B"}
    peft = PeftForm(lamda_form_keys, lamda_form_tensors)

    config: Config

    class Config(LoRA.Config):
        rank: int = Field(64, gt=0, le=65_536)
        alpha: float = Field(16.0, gt=0, le=1_000_000)
        frozen_by: float = Field(0.3, gt=0, le=1, description="share of the steps after which all of B rests")

        def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
            """What moves columns before their gradient is set to 0."""
            if recipe["optimizer.per_layer"]:
                message = "updates before gradients are set to 0 where B rests (adapter: lamda); write false"
                yield Problem("optimizer.per_layer", message)

    def __init__(self, config: Config, site: Site) -> None:
        Adapter.__init__(self, config, site)  # LoRA's own would make A train
        self.scaling = config.alpha / (math.sqrt(config.rank) if config.rslora else config.rank)
        self.register_buffer("A", torch.empty(config.rank, site.in_features))
        self.S = nn.Parameter(torch.empty(config.rank, config.rank))
        self.B = nn.Parameter(torch.empty(site.out_features, config.rank))
        self.reset()

    @classmethod
    def timed(cls, config: Config) -> TimedMethod:
        return Freezing(config)

    def reset(self) -> None:
        for tensor in (self.get_buffer("A"), self.S):
            nn.init.kaiming_uniform_(tensor, a=math.sqrt(5))
        nn.init.zeros_(self.B)

    def branch(self) -> Branch:
        """B S is formed, so that A, which is frozen, needs no input kept."""
        return Branch(self.get_buffer("A"), self.B @ self.S, self.scaling, dropout=self.config.dropout)

    @staticmethod
    def count(config: LoRA.Config, site: Site) -> int:
        return int(config.rank * (config.rank + site.out_features))


class Freezing(TimedMethod):
    """Lets the columns of B rest, from the first on."""

    config: LaMDA.Config

    def __init__(self, config: LaMDA.Config) -> None:
        super().__init__(config)
        self.held: list[tuple[nn.Parameter, Tensor]] = []  # B and what its resting columns were

    def resting(self, run: Run, rank: int) -> int:
        """How many columns of a B of this rank rest in the step that begins."""
        planned = min((*run.earlier_ends, run.total_steps))
        return min(rank, math.floor(rank * run.step / (self.config.frozen_by * planned) + EPSILON))

    def before_step(self, run: Run) -> None:
        self.held = []
        for B in _projections(run):
            count = self.resting(run, B.shape[1])
            self.held.append((B, B[:, :count].detach().clone()))
            if count == B.shape[1]:
                B.requires_grad_(False)
                run.reset_optimizer([B])
        run.record(resting_columns=sum(before.shape[1] for _, before in self.held))

    def after_backward(self, run: Run) -> None:
        for B, before in self.held:
            if not B.requires_grad:
                B.grad = None  # what a sum over processes left
            elif B.grad is not None:
                B.grad[:, : before.shape[1]] = 0

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        for B, before in self.held:
            B[:, : before.shape[1]] = before
            B.requires_grad_(True)  # what is saved and counted is the whole set
        self.held = []


def _projections(run: Run) -> Iterator[nn.Parameter]:
    return (site.adapter.B for _, site in run.adapted() if isinstance(site.adapter, LaMDA))
