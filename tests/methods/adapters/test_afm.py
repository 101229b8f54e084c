"""AFM beside the authors' compression of a layer, computed on its outputs as their code does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from lrft.api.merging.merge import merge
from lrft.api.training.train import train
from lrft.core.adapted import Adapted
from lrft.core.params import Site
from lrft.core.stages import Tokens
from lrft.methods.adapters.afm import AFM
from lrft.methods.inits.afm import AFMAxes
from lrft.methods.signals.input_moments import InputMoments
from lrft.recipe.check import check
from lrft.recipe.load import load_recipe
from lrft.registry.axes import QUANTIZERS
from lrft.registry.errors import NotMergeable
from tests.methods.prune.small import in_transformers, recipe_of

SMOKE = Path(__file__).parents[3] / "recipes" / "smoke" / "afm.yaml"
OUT, IN, TOKENS = 24, 40, 200


def rows():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(TOKENS, IN, generator=generator) * 0.9 ** torch.arange(IN) + torch.linspace(-1, 1, IN)


def made(bias=True, **settings):
    torch.manual_seed(0)
    adapter = AFM(AFM.Config(method="afm", **settings), Site("layer", IN, OUT, bias))
    weight = torch.randn(OUT, IN)
    base = QUANTIZERS.get("none")(
        weight, torch.randn(OUT) if bias else None, config=QUANTIZERS.settings("none")
    )
    moments = InputMoments()
    for x in rows().split(50):
        moments.update(
            torch.cat([x, torch.full((3, IN), 9.0)]), None, Tokens(torch.arange(50), torch.arange(49))
        )
    AFMAxes(AFMAxes.Config(method="afm")).apply(adapter, weight, {"input_moments": moments.result()}, None)
    adapter.start(weight)
    return Adapted(base, adapter)


def theirs(w, b, x, rank):
    """Two layers as afm_mlp.py makes them: what it saves in step 2, and merges in step 3."""
    y = F.linear(x, w, b)
    avg = y.mean(0).reshape(-1, 1)
    cov = y.mT @ y / len(y) - avg @ avg.mT
    u, _, v = torch.linalg.svd(cov, full_matrices=False)
    new_u, new_v = u[:, :rank], v[:rank]
    after_b = ((torch.eye(len(w)) - new_u @ new_v) @ avg).reshape(-1)
    return lambda x: F.linear(F.linear(x, new_v @ w, new_v @ b), new_u, after_b)


@pytest.mark.parametrize("compress", [2.0, 3.0])
def test_a_layer_is_the_authors_two_layers(compress):
    site, x = made(compress=compress), rows()
    W, b = site.base.weight(), site.base.bias
    rank = int(OUT * IN / (compress * (OUT + IN)))
    expected = theirs(W, b, x, rank)
    new = torch.randn(5, IN)
    torch.testing.assert_close(site(new), expected(new), rtol=1e-3, atol=1e-3)
    merged = F.linear(new, site.merged_weight(), site.merged_bias())
    torch.testing.assert_close(merged, expected(new), rtol=1e-3, atol=1e-3)
    kept = sum(p.numel() for p in site.adapter.parameters())
    assert kept == AFM.count(site.adapter.config, site.adapter.site) == rank * (OUT + IN) + OUT


@pytest.mark.parametrize("shift", [True, False])
def test_what_is_lost_are_the_smallest_components_of_the_outputs(shift):
    site, x = made(bias=False, compress=2.0, shift=shift), rows()
    y = F.linear(x, site.base.weight())
    spread = y - y.mean(0) if shift else y
    rank = site.adapter.A.shape[0]
    lost = (site(x) - y).square().sum()
    torch.testing.assert_close(lost, torch.linalg.svdvals(spread)[rank:].square().sum(), rtol=1e-3, atol=1e-3)
    best = torch.linalg.svd(site.base.weight(), full_matrices=False)
    by_weight = (best.U[:, :rank] * best.S[:rank]) @ best.Vh[:rank]
    assert (
        lost < 0.9 * (F.linear(x, by_weight) - y).square().sum()
    )  # features are of low rank, weights are not


def test_an_offset_is_merged_into_a_bias_or_not_at_all():
    with pytest.raises(NotMergeable, match=r"adapter\.shift: false"):
        made(bias=False).merged_weight()
    assert made(bias=False, shift=False).merged_bias() is None


def test_axes_that_nothing_finds_are_refused(tiny):
    assert any("write init: afm" in problem.message for problem in check(recipe_of(tiny(), None, "afm")))
    assert any(
        "feature_axes" in problem.message for problem in check(recipe_of(tiny(), None, "lora", init="afm"))
    )
    assert not check(recipe_of(tiny(), None, "afm", init="afm"))


@pytest.mark.slow
@pytest.mark.parametrize(("storage", "objective"), [("none", "pela"), ("nf4_reference", "cross_entropy")])
@pytest.mark.usefixtures("short_answers")
def test_a_compressed_model_loads_in_transformers(tiny, tmp_path, storage, objective):
    small = [f"model.name={tiny()}", "data.train.limit=30", "data.eval.limit=4", "train.device=cpu"]
    small += [f"quantization={storage}", f"objective={objective}"]
    train(load_recipe(SMOKE, small), tmp_path / "run", resume=False)
    assert merge(tmp_path / "run", tmp_path / "merged")["logit_error_max"] < 1e-4
    down = in_transformers(tmp_path / "merged").state_dict()["model.layers.0.mlp.down_proj.weight"]
    assert torch.linalg.matrix_rank(down.double(), rtol=1e-5) == int(64 * 128 / (2 * 192))
