"""What `lrft inspect` says of a run is what a plain SVD of its merged weights says, whatever the method."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from lrft.api.opening.open_run import open_run
from lrft.core.adapted import Adapted, adapted
from lrft.lab.spectra.inspect import inspect
from lrft.lab.spectra.measure import Look, SiteChange, measure
from lrft.lab.spectra.table import headline, of_layers, of_modules, of_sites
from lrft.registry.errors import NotMergeable, NumericalError, UsageError
from lrft.training.folder import find

RUNS = {
    "lora": ("quantization=nf4_reference",),
    "dora": (),
    "pissa": ("init.residual=anchor",),
    "relora": (),
    "adalora": (),
    "shira": (),
}
Sites = dict[str, tuple[Tensor, Tensor, Adapted]]


def dense(folder) -> Sites:
    """Site -> its pretrained weight and its merged one in float64, and its wrapper, of the run's last checkpoint."""
    model = open_run(find(folder))[2].model
    found = {}
    for name, module in adapted(model.hf):
        before = module.pretrained_weight().double()
        found[name] = before, before + module.change().double(), module
    return found


@pytest.fixture(scope="module", params=RUNS)
def looked_at(request, trained):
    folder = trained(request.param, *RUNS[request.param])
    return request.param, inspect(folder, Look(top=3, below=0.7)), dense(folder)


def test_every_adapted_site_is_there_once(looked_at):
    _, found, weights = looked_at
    assert [site["site"] for site in found["sites"]] == list(weights)
    assert found["kind"] == "run" and found["left_out"] == {}


def test_values_and_ranks_are_those_of_a_plain_svd(looked_at):
    _, found, weights = looked_at
    assert any(site["rank"] for site in found["sites"])
    for site in found["sites"]:
        before, after, _ = weights[site["site"]]
        values = torch.linalg.svdvals(after - before)
        largest = float(values[0])
        if largest == 0:  # pruned to nothing
            assert (site["rank"], site["rank_99"], site["rank_stable"], site["values"]) == (0, 0, 0, [])
            continue
        kept = torch.tensor(site["values"], dtype=torch.float64)
        torch.testing.assert_close(kept, values[: len(kept)], atol=2e-5 * largest, rtol=1e-4)
        floor = max(before.shape) * torch.finfo(torch.float32).eps * largest
        assert abs(site["rank"] - int((values > floor).sum())) <= 1  # one may lie at the floor itself
        shares = values[values > floor] / values[values > floor].sum()
        assert site["rank_entropy"] == pytest.approx(float((-(shares * shares.log()).sum()).exp()), rel=1e-2)
        assert site["rank_stable"] == pytest.approx(float(values.square().sum()) / largest**2, rel=1e-3)
        energy = values.square().cumsum(0) / values.square().sum()
        assert energy[site["rank_99"] - 1] >= 0.99 - 1e-5
        assert site["rank_99"] == 1 or energy[site["rank_99"] - 2] <= 0.99 + 1e-5


def test_relative_norms_are_those_of_the_weights(looked_at):
    _, found, weights = looked_at
    changes = bases = 0.0
    for site in found["sites"]:
        before, after, _ = weights[site["site"]]
        assert site["relative"] == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-4)
        changes, bases = changes + float((after - before).norm() ** 2), bases + float(before.norm() ** 2)
    assert found["relative"] == pytest.approx((changes / bases) ** 0.5, rel=1e-4)


def test_intruders_and_overlaps_are_those_of_the_definition(looked_at):
    _, found, weights = looked_at
    total = 0
    for site in found["sites"]:
        before, after, _ = weights[site["site"]]
        old, new = torch.linalg.svd(before), torch.linalg.svd(after)
        change = torch.linalg.svd(after - before)
        m = min(before.shape)
        cosines = (old.U[:, :m].mT @ new.U[:, :3]).abs().amax(0)
        likeness = torch.tensor(site["intruders"]["likeness"], dtype=torch.float64)
        torch.testing.assert_close(likeness, cosines, atol=2e-3, rtol=0)
        total += site["intruders"]["count"]
        assert site["intruders"]["count"] == int((likeness < 0.7).sum())
        r = min(3, site["rank"])
        if r == 0:
            assert site["output"] is site["input"] is None
            continue
        for side, mine, base in (
            ("output", change.U[:, :r], old.U[:, :r]),
            ("input", change.Vh[:r].mT, old.Vh[:r].mT),
        ):
            overlap = float((mine.mT @ base).square().sum()) / r
            assert site[side]["overlap"] == pytest.approx(overlap, abs=5e-3)
            assert site[side]["chance"] == pytest.approx(r / base.shape[0], rel=1e-4)
            assert len(site[side]["degrees"]) == r and site[side]["degrees"] == sorted(site[side]["degrees"])
    assert found["intruders"] == total


def test_a_method_that_has_ranks_says_how_many(looked_at):
    name, found, weights = looked_at
    for site in found["sites"]:
        adapter = weights[site["site"]][2].adapter
        if name == "adalora":
            assert site["allocated"] == int(adapter.mask.sum())
        else:
            assert site["allocated"] == getattr(adapter.config, "rank", None)


def test_what_is_found_is_kept_in_the_run_folder_and_told_as_tables(looked_at):
    _, found, _ = looked_at
    kept = json.loads(find(found["of"]).path.joinpath("inspect", f"step-{found['step']}.json").read_text())
    assert kept.pop("sha256") and kept == json.loads(json.dumps(found))
    assert str(len(found["sites"])) in headline(found)
    assert of_modules(found).row_count == len({site["module"] for site in found["sites"]})
    assert of_sites(found).row_count == len(found["sites"]) and of_layers(found).row_count == 2


def test_an_earlier_checkpoint_is_looked_at_where_it_is_named(trained):
    folder = trained("lora")
    assert inspect(folder / "checkpoints" / "step-2", Look(quick=True))["step"] == 2
    assert inspect(folder, Look(quick=True))["step"] == 3


def test_a_quick_look_decomposes_no_weight(trained, monkeypatch):
    """The spectra are there, with the relative norms; what takes an SVD of a weight is not."""
    monkeypatch.setattr("lrft.lab.spectra.measure.decompose", None)
    found = inspect(trained("lora"), Look(quick=True))
    assert found["intruders"] is None and found["relative"] > 0
    assert all(site["output"] is site["input"] is site["intruders"] is None for site in found["sites"])
    assert all(site["values"] and site["relative"] > 0 for site in found["sites"])


def test_base_weights_that_train_beside_are_looked_at_or_told(trained, capsys):
    overrides = (
        "trainable.weights=['layers.0.mlp.up_proj.weight', '*norm.weight']",
        "adapter.targets=[q_proj]",
    )
    found = inspect(trained("lora", *overrides), Look(quick=True))
    names = [site["site"] for site in found["sites"]]
    assert sum("q_proj" in name for name in names) == 2
    assert [name for name in names if "q_proj" not in name] == ["model.layers.0.mlp.up_proj"]
    assert {key.rpartition(".")[0].rpartition(".")[2] for key in found["left_out"]} == {
        "input_layernorm",
        "post_attention_layernorm",
        "norm",
    }
    assert "left out: " in capsys.readouterr().err


def test_an_adapter_that_is_the_weight_itself_has_no_base_to_lie_beside(trained):
    found = inspect(trained("factorized"))
    assert found["relative"] is None and found["intruders"] is None
    assert all(site["values"] for site in found["sites"])


def test_what_is_no_change_of_a_weight_is_refused_in_one_sentence(trained):
    with pytest.raises(NotMergeable, match="mola is no change of a weight") as told:
        inspect(trained("mola"))
    assert "\n" not in str(told.value)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match="is not a run folder"):
        inspect(tmp_path)


def test_a_base_is_not_given_for_a_run(trained):
    with pytest.raises(UsageError, match="names its own base"):
        inspect(trained("lora"), base="other")


def change_of(factors, weight=None) -> SiteChange:
    A, B = factors
    before = None if weight is None else lambda: weight
    return SiteChange("x", (B.shape[0], A.shape[1]), A.shape[0], factors, lambda: B @ A, before)


@pytest.mark.parametrize("rank", [2, 9], ids=["thin", "thick"])
def test_a_change_that_is_not_finite_is_refused_by_name(rank):
    A, B = torch.ones(rank, 5), torch.full((4, rank), float("nan"))
    with pytest.raises(NumericalError, match="x: the change of the weight is not finite"):
        measure(change_of((A, B)), Look())


def test_nothing_that_changed_has_no_angles_and_no_intruders():
    torch.manual_seed(0)
    found = measure(change_of((torch.randn(2, 9), torch.zeros(6, 2)), torch.randn(6, 9)), Look())
    assert (found["rank"], found["relative"], found["values"]) == (0, 0, [])
    assert found["output"] is found["input"] is None and found["intruders"]["count"] == 0


def test_a_site_is_placed_in_its_layer():
    A, B = torch.ones(1, 3), torch.ones(2, 1)
    for site, layer, module in (
        ("model.layers.11.self_attn.q_proj", 11, "self_attn.q_proj"),
        ("transformer.h.0.mlp.c_fc", 0, "mlp.c_fc"),
        ("model.layers.2.mlp.experts.7.w1", 2, "mlp.experts.7.w1"),
        ("lm_head", None, "lm_head"),
    ):
        found = measure(SiteChange(site, (2, 3), 1, (A, B), lambda: B @ A, None), Look())
        assert (found["layer"], found["module"]) == (layer, module)
