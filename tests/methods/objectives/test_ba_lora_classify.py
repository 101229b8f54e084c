"""BA-LoRA's regularisers for labels: its equation, the authors' figures, a base that keeps the head of the start."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from lrft.api.training.train import train
from lrft.core.adapted import Adapted
from lrft.core.params import ParamInfo, Site
from lrft.methods.objectives.ba_lora_classify import BALoRAClassify
from lrft.recipe.load import load_recipe
from lrft.registry.axes import ADAPTERS, QUANTIZERS
from lrft.registry.errors import RecipeError
from tests.methods.objectives.told import objective
from tests.training.unbroken import goes_on_unbroken

SMOKE = Path(__file__).parents[3] / "recipes" / "smoke" / "ba_lora_classify.yaml"
OFF = {"consistency": 0.0, "diversity": 0.0, "directions": 0.0}
TEXTS, WIDTH, LABELS = 5, 6, 3


class Texts(nn.Module):
    """A model whose states are told, through an adapter, and its score head."""

    def __init__(self, states, moved, head):
        super().__init__()
        config = ADAPTERS.declared("lora").config(method="lora", rank=WIDTH, alpha=WIDTH)
        lora = ADAPTERS.get("lora")(config, Site("table", WIDTH, WIDTH))
        with torch.no_grad():
            lora.A.copy_(torch.eye(WIDTH))
            lora.B.copy_(moved)
        self.table = Adapted(QUANTIZERS.get("none")(torch.eye(WIDTH)), lora)
        self.states, self.score = states, nn.Parameter(head.clone())

    def hidden(self, batch):
        return self.table(self.states)[None]

    def scores(self, batch):
        return batch.supervised_rows(self.hidden(batch)) @ self.score.mT


def told(texts=TEXTS):
    torch.manual_seed(0)
    labels = torch.tensor([0.0, 2, 1, 2, 0])[:texts]
    batch = SimpleNamespace(labels=labels, input_ids=torch.zeros(1, texts), supervised_rows=lambda h: h[0])
    states, moved = torch.randn(TEXTS, WIDTH)[:texts], 0.3 * torch.randn(WIDTH, WIDTH)
    return Texts(states, moved, torch.randn(LABELS, WIDTH)), batch


def test_loss_and_gradient_are_those_of_the_equation():
    model, batch = told()
    method = objective("ba_lora_classify", consistency=0.7, diversity=0.4, directions=0.3, k=1)
    begun = torch.randn(LABELS, WIDTH)
    method.load_state_dict({"head": begun})
    loss = method(model, batch)
    found = torch.autograd.grad(loss, [model.table.adapter.B, model.score])
    B, S = (one.detach().clone().requires_grad_() for one in (model.table.adapter.B, model.score))
    z = (model.states + model.states @ B.mT) @ S.mT
    y = model.states @ begun.mT
    expected = -sum(z[n].log_softmax(0)[int(c)] for n, c in enumerate(batch.labels))
    apart = (z / z.norm(dim=1, keepdim=True) - y / y.norm(dim=1, keepdim=True)).square()
    expected = expected + TEXTS * 0.7 * apart.sum() / (TEXTS * LABELS)
    centred = z - z.mean(0)
    pairs = [(i, j) for i in range(LABELS) for j in range(LABELS) if i != j]
    covariances = [(centred[:, i] * centred[:, j]).sum() / (TEXTS - 1) for i, j in pairs]
    expected = expected + TEXTS * 0.4 * sum(c**2 for c in covariances) / LABELS
    energy = torch.linalg.eigvalsh(z.double().mT @ z.double()).clamp(min=1e-20).sqrt()
    expected = expected - TEXTS * 0.3 * energy.max() / energy.sum()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    for one, other in zip(found, torch.autograd.grad(expected, [B, S]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_distance_and_covariance_are_those_that_the_authors_code_gives(monkeypatch):
    """Figures of the two expressions of their trainer, run once on scores (5, 3)."""

    def waves(start):
        k = torch.arange(15, dtype=torch.float64)
        return (2 * torch.sin(start + 1.7 * k + 0.3 * k**1.5)).reshape(5, 3).float()

    model, batch = told()
    model.scores = lambda batch: waves(1.0) if model.table.enabled else waves(4.0)
    plain = objective("ba_lora_classify", **OFF)(model, batch)
    distance = objective("ba_lora_classify", **{**OFF, "consistency": 1.0})(model, batch) - plain
    covariance = objective("ba_lora_classify", **{**OFF, "diversity": 1.0})(model, batch) - plain
    assert distance.item() == pytest.approx(5 * 1.3294810056686401, rel=1e-5)
    assert covariance.item() == pytest.approx(5 * 2.0073494911193848, rel=1e-5)


def test_without_weights_it_is_classification_and_one_text_has_no_covariance():
    model, batch = told()
    plain = objective("classify")(model, batch)
    torch.testing.assert_close(objective("ba_lora_classify", **OFF)(model, batch), plain)
    model, batch = told(1)
    alone = objective("ba_lora_classify", **{**OFF, "diversity": 9.0})(model, batch)
    torch.testing.assert_close(alone, objective("classify")(model, batch))
    assert F.normalize(torch.zeros(1, 3), dim=-1).isfinite().all()  # scores of a head of zeros


def test_the_base_keeps_the_head_that_the_run_began_with():
    model, batch = told()
    head = ParamInfo("score.weight", model.score, "head")
    others = [ParamInfo("table.A", model.table.adapter.A, "lora_A", site="table")]
    method = objective("ba_lora_classify", **{**OFF, "consistency": 1.0})
    with torch.no_grad():
        model.table.adapter.B.zero_()
    method.start(SimpleNamespace(parameters=[head, *others]))
    plain = objective("classify")
    assert (method(model, batch) - plain(model, batch)).abs() < 1e-6  # nothing has moved
    with torch.no_grad():
        model.score.neg_()
    apart = method(model, batch) - plain(model, batch)
    assert apart.item() == pytest.approx(
        TEXTS * 4 / LABELS, rel=1e-5
    )  # every text's scores point the other way
    method.start(SimpleNamespace(parameters=[head, *others]))  # as after a resume
    torch.testing.assert_close(method(model, batch) - plain(model, batch), apart)


def test_a_run_goes_on_unbroken_with_the_head_of_its_start(tiny, tmp_path):
    told = [f"model.name={tiny()}", "train.max_steps=4", "train.save_every=2", "train.keep_last=9"]
    loaded = load_recipe(SMOKE, [*told, "train.device=cpu", "optimizer.lr=0.02", "eval.at_end=false"])
    train(loaded, tmp_path / "run")
    goes_on_unbroken(loaded, tmp_path / "run", 2, tmp_path / "broken")
    steps = [tmp_path / "run" / "checkpoints" / f"step-{n}" for n in (2, 4)]
    kept = [load_file(step / "optimizer.safetensors")["callbacks.BALoRAClassify.head"] for step in steps]
    (trained,) = [
        one
        for name, one in load_file(steps[0] / "adapter.safetensors").items()
        if name.endswith("score.weight")
    ]
    assert torch.equal(*kept) and not torch.equal(kept[0], trained)


def test_one_label_is_refused(tiny):
    with pytest.raises(RecipeError, match=r"objective\.method: compares the scores of several labels"):
        load_recipe(SMOKE, [f"model.name={tiny()}", "model.head=[stars]"])
    assert BALoRAClassify.requires >= {"score_head", "adapters"}
