"""ABMLL beside its formulas written out on one layer, its limits, and two runs: tasks, and one more from there."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch.distributions import Gamma, Normal
from torch.nn import functional as F

from lrft.api.asking.evaluate import evaluate
from lrft.api.training.train import train
from lrft.core.adapted import Adapted
from lrft.core.context import computing
from lrft.core.params import ParamInfo, Site
from lrft.core.run import Run
from lrft.ops.draws import seed_generators
from lrft.recipe.load import load_recipe
from lrft.registry.axes import ADAPTERS
from lrft.registry.errors import RecipeError
from lrft.training.checkpoint import read_adapter
from tests.methods.objectives.told import Table, batch_of, drawn, judged, objective
from tests.training.unbroken import goes_on_unbroken

FACTORS = ("A", "B", "C", "D")
TASK = [
    batch_of(judged([0, 1], [2, 3, 1], None), judged([2], [1], None)),
    batch_of(judged([3], [0, 0], None)),
    batch_of(judged([1, 2], [3], None), judged([0], [2, 2, 0], None)),
]


class Drawn(Table):
    """The table with an adapter of means and variances that have moved."""

    def __init__(self, log_variance=-3.0):
        super().__init__(drawn(0), drawn(1))
        config = ADAPTERS.declared("abmll").config(
            method="abmll", rank=3, alpha=4.5, log_variance=log_variance
        )
        adapter = ADAPTERS.get("abmll")(config, Site("table", 4, 4))
        torch.manual_seed(2)
        for name in FACTORS:
            torch.nn.init.normal_(getattr(adapter, name).data, std=0.3)
        self.table = Adapted(self.table.base, adapter)

    def factors(self):
        return [getattr(self.table.adapter, name).detach().double().clone() for name in FACTORS]


def run_of(model, step=4, tasks=3):
    infos = [ParamInfo(n, p, "lora_A", n) for n, p in model.named_parameters() if p.requires_grad]
    optimizer = torch.optim.SGD([info.param for info in infos], lr=0.02)
    recipe = SimpleNamespace(data=SimpleNamespace(train=[None] * tasks))
    run = Run(model, infos, optimizer, None, total_steps=10, seed=3, recipe=recipe)
    run.step = step
    return run


def a_step(aim, model, run, batches):
    """As the loop takes it."""

    def passes():
        for place, batch in enumerate(batches):
            run.seed_draws(place)
            with computing(batch):
                yield batch, True

    aim.whole_step(run, SimpleNamespace(), passes)
    total = 0.0
    for place, batch in enumerate(batches):
        run.seed_draws(place)
        with computing(batch):
            loss = aim(model, batch, run)
            loss.backward()
        total += loss.detach()
    aim.after_backward(run)
    return total


def formulas(base, q, p, batch, noise, log_variance, weight):
    """L of a batch with log q - log p from torch's own densities, and -log p(theta), in float64."""
    x, scale = F.one_hot(batch.input_ids, 4).double(), 4.5 / 3

    def normal(values):
        A, B, C, D = values
        return Normal(scale * x @ A.T @ B.T, ((log_variance + scale * x @ C.T @ D.T) / 2).exp())

    mine, theirs = normal(q), normal(p)
    made = mine.mean + mine.stddev * noise.double()
    logits = x @ base.double().T + made
    flat = logits.reshape(-1, 4)[batch.supervised]
    real = torch.zeros(batch.input_ids.shape, dtype=torch.bool)
    for row, start, end in batch.documents:
        real[row, start:end] = True
    apart = (mine.log_prob(made) - theirs.log_prob(made))[real].sum()
    known = Normal(0.0, 1.0).log_prob(theirs.mean)[real].sum()
    known = known + Gamma(1.0, torch.tensor(0.01).double()).log_prob(theirs.stddev**-2)[real].sum()
    return F.cross_entropy(flat, batch.targets, reduction="sum") + weight * apart, -known


def noise_of(run, place, batch):
    seed_generators(run.seed_of_draws(place))
    return torch.randn(*batch.input_ids.shape, 4)


def test_a_step_is_that_of_the_formulas():
    """Inner steps by Adam in float64, then the gradients of the outer loss; twice, as the moments are kept."""
    model, settings = Drawn(), {"rate": 0.05, "divergence": 0.3, "prior": 0.2}
    aim, run, base = objective("abmll", **settings), run_of(model), model.table.base.weight()
    phi = [one.requires_grad_() for one in model.factors()]
    inner = torch.optim.Adam(phi, lr=0.05)
    spread = torch.optim.Adam([torch.zeros(3, 4).double(), torch.zeros(4, 3).double()], lr=0.02)
    for task in (TASK, TASK[1:]):
        model.zero_grad()
        theta = model.factors()
        for one, value in zip(phi, theta, strict=True):
            one.data.copy_(value)
        for place, batch in enumerate(task):
            inner.zero_grad()
            formulas(base, phi, theta, batch, noise_of(run, place, batch), -3.0, 0.3)[0].backward()
            inner.step()
        still, moved = [one.detach() for one in phi], [one.clone().requires_grad_() for one in theta]
        loss, known = formulas(base, still, moved, task[-1], noise_of(run, 1_008, task[-1]), -3.0, 0.3)
        shares = sum(len(batch.targets) for batch in task) / len(task[-1].targets)
        (shares * (loss + 0.2 / 3 * known)).backward()

        told = a_step(aim, model, run, task)
        torch.testing.assert_close(told.double(), shares * loss.detach(), rtol=1e-4, atol=1e-4)
        for name, tensor in zip("AB", moved[:2], strict=True):
            gradient = model.table.adapter.get_parameter(name).grad.double()
            torch.testing.assert_close(gradient, tensor.grad, rtol=2e-3, atol=1e-4)
        for one, value, tensor in zip(spread.param_groups[0]["params"], theta[2:], moved[2:], strict=True):
            one.data.copy_(value)
            one.grad = tensor.grad
        spread.step()
        for found, expected in zip(model.factors()[2:], spread.param_groups[0]["params"], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
        run.step += 1
    assert run.metrics["task_loss_after"] < run.metrics["task_loss_before"]


def test_the_divergence_of_a_distribution_from_itself_is_nothing_in_the_mean_and_grows_with_the_distance():
    model = Drawn(-1.0)
    found = []
    for rate in (1e-9, 0.1, 0.4):
        aim, run = objective("abmll", rate=rate, divergence=1e-30), run_of(model)
        for seed in range(3):
            run.step = seed
            a_step(aim, model, run, TASK)
            model.zero_grad()
        found.append(float(run.metrics["divergence"]))
    assert abs(found[0]) < 1e-6 < found[1] < found[2]


def test_without_variance_and_weights_a_task_learns_as_lora_does():
    """Its own values are then those of Adam on the cross-entropy of a plain low-rank term."""
    model = Drawn(-40.0)
    adapter = model.table.adapter
    with torch.no_grad():
        adapter.C.zero_(), adapter.D.zero_()
    aim, run = objective("abmll", rate=0.05, divergence=1e-30, prior=0.0), run_of(model)
    A, B, *_ = (one.requires_grad_() for one in model.factors())
    plain = torch.optim.Adam([A, B], lr=0.05)
    for batch in TASK:
        plain.zero_grad()
        x = F.one_hot(batch.input_ids, 4).double()
        logits = x @ (model.table.base.weight().double() + 1.5 * B @ A).T
        F.cross_entropy(logits.reshape(-1, 4)[batch.supervised], batch.targets, reduction="sum").backward()
        plain.step()
    a_step(aim, model, run, TASK)
    torch.testing.assert_close(aim.phi[0].A.detach().double(), A.detach(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(aim.phi[0].B.detach().double(), B.detach(), rtol=1e-3, atol=1e-4)
    assert all(p.grad.abs().max() < 1e-6 for p in model.parameters() if p.requires_grad), (
        "and teaches nothing"
    )


def test_what_answers_is_the_mean():
    model = Drawn()
    adapter, x = model.table.adapter, torch.eye(4)
    expected = x @ (model.table.base.weight() + 1.5 * adapter.B @ adapter.A).T
    for mode in (True, False):
        torch.testing.assert_close(model.table.train(mode)(x), expected)
    torch.testing.assert_close(model.table.merged_weight(), expected.T)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three tasks of one kind, each with its own word for yes, and one more."""
    monkeypatch.chdir(tmp_path)
    for name, word in (("a", "red"), ("b", "blue"), ("c", "green"), ("new", "grey")):
        rows = [{"prompt": f"What is {k}?", "completion": f" {word} {k % 3}"} for k in range(9)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def recipe(tiny, *overrides):
    return load_recipe(
        "smoke/abmll",
        [
            f"model.name={tiny()}",
            "data.train=[a.jsonl,b.jsonl,c.jsonl]",
            "data.eval=new.jsonl",
            "data.format=prompt_completion",
            "train.device=cpu",
            *overrides,
        ],
    )


def test_tasks_are_learnt_and_one_more_from_there(tiny, folder):
    result = train(
        recipe(tiny, "train.max_steps=6", "objective.rate=0.003", "optimizer.lr=0.01"), folder / "run"
    )
    assert result["step"] == 6
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "task_loss_after" in line]
    assert len(lines) == 6 and all(math.isfinite(line["divergence"]) for line in lines)
    assert all(line["task_loss_after"] < line["task_loss_before"] for line in lines)
    assert lines[3]["task_loss_before"] < lines[0]["task_loss_before"], "the second turn begins further on"
    held = read_adapter(folder / "run" / "checkpoints" / "step-6")
    spread = next(value for name, value in held.items() if name.endswith(".D"))
    assert spread.any()
    adapt = ["objective.stage=adapt", "model.adapter=run", "data.train=new.jsonl", "data.mix.order=mixed"]
    other = train(recipe(tiny, *adapt, "train.max_steps=5", "optimizer.lr=0.001"), folder / "new")
    assert other["step"] == 5
    before, after = (evaluate(folder / run)["adapter"]["loss"].metrics["loss"] for run in ("run", "new"))
    assert after < before
    adapted = read_adapter(folder / "new" / "checkpoints" / "step-5")
    assert any(not torch.equal(adapted[name], held[name]) for name in held if name.endswith(".D"))


@pytest.mark.parametrize("stage", ["tasks", "adapt"])
def test_a_run_that_was_stopped_is_the_run_that_was_not(tiny, folder, stage):
    told = ["train.max_steps=6", "train.save_every=3", "train.keep_last=9"]
    if stage == "adapt":
        train(recipe(tiny, "train.max_steps=3"), folder / "tasks")
        told += [
            "objective.stage=adapt",
            "model.adapter=tasks",
            "data.train=new.jsonl",
            "data.mix.order=mixed",
        ]
    loaded = recipe(tiny, *told)
    train(loaded, folder / "whole")
    goes_on_unbroken(loaded, folder / "whole", 3, folder / "broken")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.mix.order=mixed", "gives steps with rows of several tasks"),
        ("objective.stage=adapt", "nothing was learnt of tasks"),
        ("adapter=lora", "amortized"),
        ("model.activation_checkpointing=true", "with other draws"),
        ("model.dtype=float16", "no scale of losses"),
        ("restart={method: relora, every: 2}", "restart: null"),
    ],
)
def test_what_does_not_go_with_it_is_refused(tiny, folder, override, message):
    with pytest.raises(RecipeError, match=message):
        recipe(tiny, override)


def test_several_processes_are_refused():
    model = Drawn()
    run = run_of(model)
    run.accelerator = SimpleNamespace(num_processes=2, process_index=0)
    with pytest.raises(RecipeError, match="by one process; leave the launcher out"):
        objective("abmll").whole_step(run, SimpleNamespace(), lambda: iter(()))


def test_experts_are_refused_before_a_step(tiny, folder):
    other = [f"model.name={tiny('mixtral')}", "model.experts=split", "train.max_steps=3"]
    with pytest.raises(RecipeError, match="splits experts, and what layers add is drawn"):
        train(recipe(tiny, *other), folder / "run")
