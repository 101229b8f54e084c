"""`--factors`: what low-rank compression made is written small, and computes what the run does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lrft.api.merging.merge import merge
from lrft.api.opening.open_run import open_run
from lrft.api.training.train import train
from lrft.export.factors import factors
from lrft.recipe.load import load_recipe
from lrft.registry.errors import NotMergeable, UsageError
from lrft.training.folder import RunFolder
from tests.methods.prune.small import in_transformers, logits

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke"


def trained(tiny, folder, name, *more, family="llama"):
    small = [f"model.name={tiny(family)}", "data.train.limit=30", "data.eval.limit=4", "train.device=cpu"]
    train(load_recipe(SMOKE / f"{name}.yaml", [*small, *more]), folder, resume=False)
    return folder


def test_the_factors_of_a_product_have_its_rank():
    torch.manual_seed(0)
    weight = torch.randn(24, 5) @ torch.randn(5, 40)
    first, second = factors(weight)
    assert first.shape == (5, 40) and second.shape == (24, 5)
    torch.testing.assert_close(second @ first, weight, rtol=1e-4, atol=1e-4)
    assert len(factors(torch.randn(24, 40))[0]) == 24


@pytest.mark.parametrize(
    ("name", "family", "more"),
    [
        ("trp", "llama", ["prune.energy=0.2"]),
        pytest.param("pela", "qwen2", ["adapter.compress=3"], marks=pytest.mark.slow),
        pytest.param("afm", "qwen2", [], marks=pytest.mark.slow),
        pytest.param("factorized", "llama", ["adapter.rank=4"], marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("short_answers")
def test_transformers_loads_fewer_numbers_that_compute_what_the_run_does(tiny, tmp_path, name, family, more):
    run = trained(tiny, tmp_path / "run", name, *more, family=family)
    record = merge(run, tmp_path / "small", factors=True)
    assert record["logit_error_max"] < 1e-4 and record["generation"]["agrees"]
    loaded = in_transformers(tmp_path / "small", trust_remote_code=True)
    torch.testing.assert_close(
        logits(loaded), logits(open_run(RunFolder(run))[2].model.eval()), rtol=0, atol=1e-4
    )
    assert loaded.num_parameters() == record["parameters"] < record["parameters_dense"]
    split = loaded.config.layer_ranks
    assert len(split) == record["factored_layers"]
    whole = in_transformers(tiny(family))
    saved = sum(
        weight.numel() - rank * sum(weight.shape)
        for path, rank in split.items()
        for weight in [whole.get_submodule(path).weight]
    )
    assert whole.num_parameters() - loaded.num_parameters() == saved


@pytest.mark.slow
@pytest.mark.usefixtures("short_answers")
def test_what_has_no_factors_or_is_written_otherwise_is_refused(tiny, tmp_path):
    run = trained(tiny, tmp_path / "run", "lora")
    with pytest.raises(NotMergeable, match="no layer has a rank so low"):
        merge(run, tmp_path / "out", factors=True)
    assert not (tmp_path / "out").exists()
    for more in ({"requantize": "nf4"}, {"rounding": "stochastic"}):
        with pytest.raises(UsageError, match="--factors: the factors of a layer are rounded to nearest"):
            merge(run, tmp_path / "out", factors=True, **more)
    pruned = trained(tiny, tmp_path / "pruned", "loraprune")
    with pytest.raises(NotMergeable, match="lost heads and channels"):
        merge(pruned, tmp_path / "out", factors=True)
