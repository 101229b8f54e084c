"""Trained rank pruning: ranks, energies and gradients of the formula, and plain training where it never truncates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from lrft.api.merging.merge import merge
from lrft.api.training.train import train
from lrft.core.params import ParamInfo
from lrft.core.run import Run
from lrft.methods.prune.trp import TRP, truncate
from lrft.recipe.check import check
from lrft.recipe.load import load_recipe
from lrft.registry.errors import RecipeError
from tests.methods.prune.small import in_transformers, recipe_of

SMOKE = Path(__file__).parents[3] / "recipes" / "smoke" / "trp.yaml"


def make(total=6, dtype=torch.float32, **settings):
    torch.manual_seed(0)
    shapes = {"layers.0.up": (12, 8), "layers.0.down": (8, 12), "layers.0.norm": (8,), "embed": (20, 8)}
    roles = {"embed": "embedding", "layers.0.norm": "vector"}
    infos = [
        ParamInfo(
            n, nn.Parameter(torch.randn(s).to(dtype)), roles.get(n, "matrix"), block=n.rpartition(".")[0]
        )
        for n, s in shapes.items()
    ]
    run = Run(nn.Module(), infos, torch.optim.SGD([info.param for info in infos], lr=0.1), None, total)
    run.callbacks = [] if settings.get("every") == 0 else [TRP(TRP.Config(method="trp", **settings))]
    run.fire("start")
    return run


def step(run):
    """One step along gradients of noise; the parameters that they are taken at, and the gradients."""
    run.fire("before_step")
    held = {info.name: info.param.detach().clone() for info in run.parameters}
    noise = {}
    for index, info in enumerate(run.parameters):
        draw = torch.Generator().manual_seed(100 * run.step + index)
        info.param.grad = noise[info.name] = torch.randn(info.param.shape, generator=draw).to(
            info.param.dtype
        )
    noise = {name: grad.clone() for name, grad in noise.items()}
    run.fire("after_backward")
    gradients = {info.name: info.param.grad.clone() for info in run.parameters}
    run.optimizer.step()
    run.step += 1
    run.fire("after_step")
    return held, noise, gradients


def rank(weight):
    return int(torch.linalg.matrix_rank(weight.double(), rtol=1e-5))


def test_a_truncated_matrix_has_the_least_rank_with_the_energy():
    torch.manual_seed(0)
    for energy in (0.5, 0.9, 0.999, 1.0):
        weight = torch.randn(12, 8)
        S = torch.linalg.svdvals(weight.double()).square()
        cut = weight.clone()
        k = len(truncate(cut, energy)[1])
        assert rank(cut) == k
        assert S[:k].sum() >= energy * S.sum() * (1 - 1e-6)
        assert k == 1 or S[: k - 1].sum() < energy * S.sum()
        best = (weight - cut).double().square().sum()
        torch.testing.assert_close(best, S[k:].sum(), rtol=1e-4, atol=1e-6)
    weight = torch.diag(torch.tensor([3.0, 2.0, 0.5]))
    assert len(truncate(weight, least=1.0)[1]) == 2 and weight.diag().tolist() == [3.0, 2.0, 0.0]


def test_gradients_are_taken_at_low_rank_every_so_many_steps_with_the_nuclear_norm():
    run = make(every=2, energy=0.6, nuclear=0.5)
    for number in range(6):
        held, noise, gradients = step(run)
        for name in ("layers.0.up", "layers.0.down"):
            added = gradients[name] - noise[name]
            if number % 2:
                assert rank(held[name]) == 8 and not added.any()
                continue
            U, _, Vh = torch.linalg.svd(held[name], full_matrices=False)
            k = rank(held[name])
            assert k < 8
            torch.testing.assert_close(added, 0.5 * U[:, :k] @ Vh[:k], rtol=1e-3, atol=1e-4)
        assert torch.equal(gradients["embed"], noise["embed"])
        assert torch.equal(gradients["layers.0.norm"], noise["layers.0.norm"])
    last = {info.name: rank(info.param.detach()) for info in run.parameters if info.role == "matrix"}
    assert run.summary["ranks"] == last and max(last.values()) < 8


def test_all_energy_and_no_nuclear_norm_are_plain_training():
    ours, plain = make(every=1, energy=1.0), make(every=0)
    for _ in range(6):
        step(ours)
        step(plain)
    for mine, theirs in zip(ours.parameters, plain.parameters, strict=True):
        assert torch.equal(mine.param, theirs.param)


def test_what_a_truncation_would_not_reach_is_refused(tiny):
    recipe = recipe_of(tiny(), "trp", None, {"weights": "full", "update": "master"})
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"dtype": "bfloat16"})})
    assert any(problem.key == "trainable.update" for problem in check(recipe))
    averaged = recipe_of(tiny(), "trp", None, "full", optimizer="schedule_free")
    assert any("averages weights" in problem.message for problem in check(averaged))
    run = make(every=1)
    run.parameters = [info for info in run.parameters if info.role != "matrix"]
    with pytest.raises(RecipeError, match="no rank to prune"):
        run.fire("start")


@pytest.mark.slow
@pytest.mark.usefixtures("short_answers")
def test_transformers_loads_weights_of_the_ranks_that_are_reported(tiny, tmp_path):
    small = [f"model.name={tiny()}", "data.train.limit=30", "data.eval.limit=4", "train.device=cpu"]
    done = train(load_recipe(SMOKE, small), tmp_path / "run", resume=False)
    assert merge(tmp_path / "run", tmp_path / "merged")["logit_error_max"] < 1e-6
    weights = in_transformers(tmp_path / "merged").state_dict()
    assert len(done["ranks"]) == 14
    for name, k in done["ranks"].items():
        assert rank(weights[name]) == k < min(weights[name].shape)
