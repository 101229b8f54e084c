"""ABMLL: the start that many tasks share is learnt from how each task moves a copy of it in a few steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lrft.core.adapted import Adapted
from lrft.core.batch import Batch
from lrft.core.callback import Callback
from lrft.core.objective import Objective, Passes, StepTotals
from lrft.core.run import LanguageModel, Run
from lrft.methods.objectives._amortized import NAMES, Told, Values, drawn, sites_of, step_nowhere, values_of
from lrft.ops.loss import linear_cross_entropy
from lrft.registry.axes import OBJECTIVES
from lrft.registry.config import Field, Iterator, Literal, MethodConfig, Problem, RecipeView
from lrft.registry.errors import RecipeError

OUTER = 1_008  # the last place that draws have in a step: other ones than those of the steps to phi


@OBJECTIVES.register
class ABMLL(Objective, Callback):
    """Amortized Bayesian meta-learning: in a step a copy of the adapter learns a task, and the adapter from that.

        q, p = the distributions of `adapter: abmll` with the values phi of the task, theta of all tasks
        L(batch) = -log of the answers' tokens, z drawn from q at every site + `divergence` sum of log q(z) - log p(z)
        phi   <- theta; for every micro-batch of the step: phi <- phi - `rate` Adam of dL / dphi
        loss  = L(last micro-batch) - (`prior` / T) sum of log N(mu_p; 0, 1) + log Gamma(exp(-v_p); 1, 0.01)

    with sums over sites, real tokens and outputs, T the sources of `data.train`, one a task; `loss` is by theta, phi
    held constant, so no gradient goes through the steps to phi. A step's rows are of one task (`data.mix.order:
    alternating`), so train.gradient_accumulation is the number of steps to phi. A and B of theta are moved by the
    recipe's optimizer, C and D by an AdamW of the same rate without decay and clipping. The loop divides by the tokens
    of the step. With `stage: adapt` a new task is learnt from such a run (`model.adapter: RUN`): phi is what trains,
    theta what it began with, and the loss L, by all micro-batches.

    Shapes: z (tokens, out) at every site, gone after its pass. At step 0 theta is what the adapter begins with, its
    mean the base model. In calibration the loss is that of the mean.
    Trains: what the adapter trains, and its C and D. Keeps for a run the moments of both optimizers (8 r (in + out)
    and 2 r (in + out) numbers a site), in checkpoints, and 4 r (in + out) of phi. A step of K micro-batches takes K
    passes forward and back, and one more that goes back through no layer. Records: task_loss_before and
    task_loss_after, the loss per target of the first micro-batch at theta and of the last one at phi, as drawn;
    divergence, the sum of log q - log p per real token. The prior is not in the loss that is told, where it counts 0.
    Source: Zhang, Snell and Griffiths, "Amortized Bayesian Meta-Learning for Low-Rank Adaptation of Large Language
    Models", 2025, arXiv 2508.14285, and the authors' code: weights 1e-8, rates 1e-5 (phi) and 5e-5 (theta), 5 steps to
    phi of 2 rows each, as many to adapt, the moments of phi kept over tasks, Gamma(1, 0.01).
    Departures: as the code has it: one weight for divergence and prior, which the first version of the paper has apart.
    Padding is left out of the sums, and the constant of the gamma distribution. Where a run was adapted, its mean
    answers, as in the code; the average over samples of the paper is left out.
    Advice: adapt with train.max_steps 5 and the rate 1e-5.
    """

    aliases = {
        "meta_learning bayesian_meta_learning": "adapter: abmll\nobjective: abmll\n"
        "data: {train: [owner/a, owner/b], mix: {order: alternating}}",
    }
    provides = {"backward"}
    requires = {"amortized", "fixed_base", "beside_base", "eager", "first_order", "one_stage"}

    config: Config

    class Config(MethodConfig):
        stage: Literal["tasks", "adapt"] = Field(
            "tasks", description="tasks: learn what tasks share; adapt: learn one more from there"
        )
        rate: float = Field(1e-5, gt=0, description="of the steps to a task's own values")
        divergence: float = Field(
            1e-8, gt=0, description="weight of the divergence of a task's values from those of all tasks"
        )
        prior: float = Field(1e-8, ge=0, description="weight of what is known of all tasks before")

        def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
            """Steps that are of no single task, or see what they should not."""
            tasks = self.stage == "tasks"
            wrong = {
                "data.mix.order": (
                    tasks and recipe["data.mix.order"] != "alternating",
                    "gives steps with rows of several tasks; write alternating, and a list in data.train",
                ),
                "model.adapter": (
                    not tasks and recipe["model.adapter"] is None,
                    "is not there, so that nothing was learnt of tasks; name the run with stage: tasks",
                ),
                "model.activation_checkpointing": (
                    recipe["model.activation_checkpointing"] not in (None, False),
                    "computes layers again, with other draws; write false",
                ),
                "model.dtype": (
                    recipe["model.dtype"] == "float16",
                    "the steps to a task's values have no scale of losses; write bfloat16",
                ),
                "objective.method": (
                    recipe["privacy"] is not None or recipe["federate"] is not None,
                    "takes steps of its own, which neither privacy nor clients know of; remove these",
                ),
                "model.adapters": (
                    bool(recipe["model.adapters"]),
                    "lie on the base, and what is drawn would not; merge them",
                ),
            }
            yield from (Problem(key, message) for key, (is_wrong, message) in wrong.items() if is_wrong)

    def __init__(self, config: MethodConfig) -> None:
        super().__init__(config)
        self.sites: list[Adapted] = []
        self.phi: list[Values] = []  # of a task, or with `stage: adapt` the values at the start
        self.steps: torch.optim.Optimizer | None = None  # to phi
        self.spread: torch.optim.Optimizer | None = None  # of C and D
        self.leaves: list[Values] = []  # theta with C and D as leaves of the loss
        self.left = 0  # micro-batches of the step that are not there yet
        self.scale = 1.0
        self.kept: Any = None

    def __call__(self, model: LanguageModel, batch: Batch, run: Run | None = None) -> Tensor:
        """Summed loss; of all micro-batches of a step but the last one 0, with `stage: tasks`.

        Raises:
            RecipeError: an expert is adapted.
        """
        if run is None:
            rows = batch.supervised_rows(model.hidden(batch))
            return linear_cross_entropy(rows, model.head, batch.targets)
        self._prepare(model)
        self.left = max(self.left - 1, 0)
        if self.config.stage == "adapt":
            return self._loss(model, batch, self.leaves, self.phi)[0]
        if self.left:
            return 0 * self.leaves[0].A.sum()
        run.seed_draws(OUTER)
        return self._outer(model, batch, run)

    def whole_step(self, run: Run, totals: StepTotals, passes: Passes) -> None:
        """Let a copy of the adapter learn the step's task, with `stage: tasks`.

        Raises:
            RecipeError: several processes train, each of which would have a part of the task.
        """
        if run.processes > 1:
            raise RecipeError(
                "steps to a task's values are taken by one process; leave the launcher out",
                "objective.method",
            )
        self._prepare(run.model)
        if self.config.stage == "adapt":
            return
        self._begin_task()
        counts = []
        for batch, _ in passes():
            counts.append(len(batch.targets))
            with torch.enable_grad():
                loss, told = self._loss(run.model, batch, self.phi, self._theta())
                self._move(loss)
            if len(counts) == 1:
                run.record(task_loss_before=told[0] / max(counts[0], 1))
        self.left = len(counts)
        self.scale = sum(counts) / max(counts[-1], 1) if counts else 1.0

    def after_backward(self, run: Run) -> None:
        """Move C and D, at the rate that A and B are about to be moved with."""
        assert self.spread is not None, "a loss was taken"
        for group in self.spread.param_groups:
            group["lr"] = float(run.optimizer.param_groups[0]["lr"])
        for site, leaf in zip(self.sites, self.leaves, strict=True):
            for name in ("C", "D"):
                site.adapter.get_buffer(name).grad = getattr(leaf, name).grad
        self.spread.step()
        self.spread.zero_grad()
        self.leaves = [values_of(site.adapter).as_leaves() for site in self.sites]

    def state_dict(self) -> Mapping[str, object]:
        if self.steps is None or self.spread is None:
            return {} if self.kept is None else self.kept
        found: dict[str, object] = {"steps": self.steps.state_dict(), "spread": self.spread.state_dict()}
        if self.config.stage == "adapt":
            found["began"] = [dict(zip(NAMES, values, strict=True)) for values in self.phi]
        return found

    def kept_later(self, run: Run) -> Mapping[str, object]:
        begun = type(self)(self.config)
        begun._prepare(run.model)
        for optimizer in filter(None, (begun.steps, begun.spread)):
            step_nowhere(optimizer)
        return begun.state_dict()

    def load_state_dict(self, state: Any) -> None:
        self.kept = state

    def _prepare(self, model: LanguageModel) -> None:
        """Find the sites, and take back what a checkpoint kept, once."""
        if self.sites:
            return
        self.sites = sites_of(model)
        self.phi = [values_of(site.adapter).copied(self.config.stage == "tasks") for site in self.sites]
        own = [tensor for values in self.phi for tensor in values]
        self.steps = torch.optim.AdamW(own, lr=self.config.rate, weight_decay=0.0)
        spread = [site.adapter.get_buffer(name) for site in self.sites for name in ("C", "D")]
        self.spread = torch.optim.AdamW(spread, lr=self.config.rate, weight_decay=0.0)
        self.leaves = [values_of(site.adapter).as_leaves() for site in self.sites]
        if self.kept is None:
            return
        self.steps.load_state_dict(self.kept["steps"])
        self.spread.load_state_dict(self.kept["spread"])
        for values, began in zip(self.phi, self.kept.get("began", ()), strict=False):
            for name, tensor in zip(NAMES, values, strict=True):
                tensor.copy_(began[name])

    def _theta(self) -> list[Values]:
        return [Values(*(tensor.detach() for tensor in values)) for values in self.leaves]

    @torch.no_grad()
    def _begin_task(self) -> None:
        for mine, theirs in zip(self.phi, self.leaves, strict=True):
            for tensor, value in zip(mine, theirs, strict=True):
                tensor.copy_(value)

    def _move(self, loss: Tensor) -> None:
        assert self.steps is not None, "made before"
        own = [tensor for values in self.phi for tensor in values]
        for tensor, gradient in zip(own, torch.autograd.grad(loss, own), strict=True):
            tensor.grad = gradient
        self.steps.step()

    def _loss(
        self, model: LanguageModel, batch: Batch, q: list[Values], p: list[Values], prior: bool = False
    ) -> tuple[Tensor, tuple[Tensor, Told]]:
        """L of a micro-batch, and what it is made of."""
        with drawn(model, self.sites, q, p, prior) as told:
            rows = batch.supervised_rows(model.hidden(batch))
            loss = linear_cross_entropy(rows, model.head, batch.targets)
        divergence = self.config.divergence * torch.stack(told.divergences).sum()
        return loss + divergence, (loss.detach(), told)

    def _outer(self, model: LanguageModel, batch: Batch, run: Run) -> Tensor:
        phi = [Values(*(tensor.detach() for tensor in values)) for values in self.phi]
        loss, (entropy, told) = self._loss(model, batch, phi, self.leaves, prior=True)
        given = run.recipe.data.train if run.recipe is not None else None
        tasks = len(given) if isinstance(given, list) else 1
        known = self.config.prior / tasks * torch.stack(told.priors).sum()
        loss = loss + known - known.detach()  # large, and known but for a constant: not in what is told
        tokens = sum(end - start for _, start, end in batch.documents)
        run.record(
            task_loss_after=entropy / max(len(batch.targets), 1),
            divergence=torch.stack(told.divergences).sum().detach() / max(tokens, 1),
        )
        return self.scale * loss
