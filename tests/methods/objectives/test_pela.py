"""PELA's loss beside the authors' two terms, formed densely on hidden states that transformers itself gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from lrft.api.merging.merge import merge
from lrft.api.training.train import train
from lrft.build.adapt import adapt
from lrft.core.adapted import adapted, adapters_off
from lrft.data.collate import collate
from lrft.data.encoded import Encoded
from lrft.methods.objectives.cross_entropy import CrossEntropy
from lrft.methods.objectives.pela import PELA, largest_gap
from lrft.recipe.check import check
from lrft.recipe.load import load_recipe
from tests.methods.prune.small import in_transformers, recipe_of

SMOKE = Path(__file__).parents[3] / "recipes" / "smoke" / "pela.yaml"


def model_of(folder):
    model = adapt(recipe_of(folder, None, {"method": "pela", "compress": 2.0}, objective="pela")).model
    torch.manual_seed(0)
    for _, site in adapted(model.hf):
        nn.init.normal_(site.adapter.A, std=0.1)
    return model


def batch():
    rows = [Encoded(list(range(5 + k, 14 + k)), [False] * 3 + [True] * 6, length=9) for k in (0, 20)]
    return collate([[row] for row in rows], 0, None, [[0], [1]])


def loss_of(model, **settings):
    return PELA(PELA.Config(method="pela", **settings))(model, batch())


def test_the_terms_are_those_of_the_authors(tiny):
    model, rows = model_of(tiny()), batch()
    plain = CrossEntropy(CrossEntropy.Config(method="cross_entropy"))(model, rows)
    torch.testing.assert_close(loss_of(model, features=0.0, weights=0.0), plain)

    captured = []
    for teacher in (False, True):
        kept = []
        handles = [
            layer.register_forward_hook(
                lambda _, x, y, kept=kept: kept.append(y[0] if isinstance(y, tuple) else y)
            )
            for layer in model.hf.model.layers
        ]
        if teacher:
            with adapters_off(model):
                model.hidden(rows)
        else:
            model.hidden(rows)
        [handle.remove() for handle in handles]
        captured.append([h.detach().flatten(0, 1)[rows.supervised] for h in kept])
    distances = [nn.functional.mse_loss(a, b) for a, b in zip(*captured, strict=True)]
    count = rows.targets.numel()
    expected = plain + 0.3 * count * torch.stack(distances).mean()
    assert min(distances) > 0
    torch.testing.assert_close(loss_of(model, features=0.3, weights=0.0), expected)

    residuals = [s.adapter.B @ s.adapter.A - s.base.weight() for _, s in adapted(model.hf)]
    error = torch.stack([(torch.norm(r, float("inf")) - 0.01) ** 2 for r in residuals]).mean()
    torch.testing.assert_close(
        loss_of(model, features=0.0, weights=2.0, epsilon=0.01), plain + 2 * count * error
    )


def test_the_bound_has_the_gradient_of_the_dense_norm_and_is_eps_at_no_change(tiny):
    site = next(site for _, site in adapted(model_of(tiny()).hf))
    A, B = site.adapter.A, site.adapter.B
    dense = torch.autograd.grad(torch.norm(B @ A - site.base.weight(), float("inf")), (A, B))
    ours = torch.autograd.grad(largest_gap(site), (A, B))
    torch.testing.assert_close(ours, dense)
    with torch.no_grad():
        site.base.write((B @ A).to(site.base.weight().dtype))
    assert float(largest_gap(site).detach()) < 1e-6


def test_no_matrix_of_a_weight_is_kept_for_the_backward_pass(tiny):
    site, saved = next(site for _, site in adapted(model_of(tiny()).hf)), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        largest_gap(site)
    assert saved and max(t.numel() for t in saved) < site.base.weight().numel() / 4


def test_an_adapter_that_stands_for_no_weight_is_refused(tiny):
    assert any("stands_for_weight" in p.message for p in check(recipe_of(tiny(), None, objective="pela")))


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["none", "nf4_reference"])
@pytest.mark.usefixtures("short_answers")
def test_the_student_is_tuned_on_and_loads_in_transformers(tiny, tmp_path, storage):
    small = [f"model.name={tiny()}", "data.train.limit=30", "data.eval.limit=4", "train.device=cpu"]
    small += [f"quantization={storage}"]
    train(load_recipe(SMOKE, small), tmp_path / "first", resume=False)
    then = [*small, f"model.adapter={tmp_path / 'first'}", "objective=cross_entropy"]
    train(load_recipe(SMOKE, then), tmp_path / "run", resume=False)
    assert merge(tmp_path / "run", tmp_path / "merged")["logit_error_max"] < 1e-4
    weights = in_transformers(tmp_path / "merged").state_dict()
    down = weights["model.layers.0.mlp.down_proj.weight"]
    assert torch.linalg.matrix_rank(down.double(), rtol=1e-5) == int(64 * 128 / (2 * 192))
