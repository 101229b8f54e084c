"""The gap between a low-rank step and the full gradient, against gradients that autograd gives of the dense weight."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import lrft
from lrft.core.adapted import Adapted
from lrft.core.params import ParamInfo, Site
from lrft.core.run import Run
from lrft.recipe.load import load_recipe
from lrft.registry.axes import ADAPTERS, ANALYSES, OPTIMIZERS, QUANTIZERS, SCHEDULES
from lrft.registry.errors import RecipeError
from lrft.training import schedule

SMOKE = Path(__file__).parents[3] / "recipes" / "smoke"
OUT, IN, RANK, ALPHA = 20, 16, 3, 6


def make(optimizer: str, quantization: str = "none", steps: int = 20):
    torch.manual_seed(0)
    base = QUANTIZERS.get(quantization)(torch.randn(OUT, IN), None, QUANTIZERS.settings(quantization))
    adapter = ADAPTERS.get("lora")(ADAPTERS.settings("lora", rank=RANK, alpha=ALPHA), Site("x", IN, OUT))
    adapter.B.data += torch.randn(OUT, RANK) / 3
    model = nn.Sequential(Adapted(base, adapter))
    infos = [
        ParamInfo("x.A", adapter.A, "lora_A", "x", adapter.scaling, adapter.B),
        ParamInfo("x.B", adapter.B, "lora_B", "x", adapter.scaling, adapter.A),
    ]
    built = OPTIMIZERS.get(optimizer).build(infos, OPTIMIZERS.settings(optimizer))
    run = Run(model, infos, built, schedule.build(built, SCHEDULES.settings("linear"), 9), 9)
    analysis = ANALYSES.get("gradient_gap")(ANALYSES.settings("gradient_gap", steps=steps))
    run.callbacks = [analysis]
    run.fire("start")
    return run, analysis, adapter, base


def backward(run: Run, base, adapter, micro_batches: int = 1) -> torch.Tensor:
    """One step's gradients; returns that of the dense merged weight, by autograd."""
    run.fire("before_step")
    weight = (base.weight() + adapter.delta_weight(base.weight())).detach().requires_grad_()
    for index in range(micro_batches):
        x = torch.randn(4, 5, IN, generator=torch.Generator().manual_seed(index))
        run.model(x).sin().sum().backward()
        (x @ weight.mT).sin().sum().backward()
    run.fire("after_backward")
    assert weight.grad is not None
    return weight.grad


@pytest.mark.parametrize("quantization", ["none", "nf4_reference"])
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_the_gap_of_gradient_descent_is_that_of_the_formula(quantization, micro_batches):
    run, analysis, adapter, base = make("adamw", quantization)
    G = backward(run, base, adapter, micro_batches)
    s, A, B = ALPHA / RANK, adapter.A.detach(), adapter.B.detach()
    step = s * s * (B @ B.mT @ G + G @ A.mT @ A)  # gA = s B^T G and gB = s G A^T
    expected = float((step - G).norm() / G.norm())
    assert analysis.found["plain"]["1:x"] == pytest.approx(expected, rel=1e-4)
    assert analysis.found["adjusted"] == analysis.found["plain"]
    cosine = float((step * G).sum() / (step.norm() * G.norm()))
    assert analysis.found["cosine"]["1:x"] == pytest.approx(cosine, rel=1e-4)


def test_an_optimizer_that_adjusts_gradients_is_asked_for_them():
    run, analysis, adapter, base = make("lora_pro")
    G = backward(run, base, adapter)
    A, B = adapter.A.detach(), adapter.B.detach()
    onto_B, onto_A = B @ torch.linalg.pinv(B), torch.linalg.pinv(A) @ A
    left = G - onto_B @ G  # what no step of A can reach; a step of B reaches its part within the rows of A
    expected = float((left - left @ onto_A).norm() / G.norm())
    assert analysis.found["adjusted"]["1:x"] == pytest.approx(expected, rel=1e-3)
    assert analysis.found["adjusted"]["1:x"] < analysis.found["plain"]["1:x"]


def test_only_the_steps_asked_for_are_measured_and_nothing_stays_behind():
    run, analysis, adapter, base = make("adamw", steps=2)
    for _ in range(3):
        backward(run, base, adapter)
        run.step += 1
        run.optimizer.zero_grad()
    assert set(analysis.found["plain"]) == {"1:x", "2:x"}
    assert not run.model[0]._forward_hooks
    assert analysis.full == {}


@pytest.mark.parametrize("analysis", ["gradient_gap", "rank_losses"])
def test_layers_without_factors_are_left_out_of_an_analysis_of_factors(tiny, tmp_path, analysis):
    small = [f"model.name={tiny()}", "model.dtype=float32", "data.train.limit=20", "data.eval.limit=4"]
    small += ["train.max_steps=3", "train.eval_every=3", "train.device=cpu", f"analyse=[{analysis}]"]
    small += ["adapter.dropout=0"]
    some = load_recipe(SMOKE / "dora.yaml", [*small, "adapter.magnitude_only=[q_proj, '*.mlp.*']"])
    found = lrft.train(some, tmp_path / "some", resume=False)["analysis"][analysis]
    if analysis == "gradient_gap":
        measured = {key.rpartition(".")[2] for key in found["plain"]}
        assert measured == {"k_proj", "v_proj", "o_proj"}
    else:
        assert len(found["loss"]) == some.recipe.adapter.rank
    none = load_recipe(SMOKE / "dora.yaml", [*small, "adapter.magnitude_only=['*']"])
    with pytest.raises(RecipeError, match=f"{analysis} looks at factors A and B, and no layer has any"):
        lrft.train(none, tmp_path / "none", resume=False)
