"""The bed for pre-training claims: the same bytes every time, and every optimizer trains on it."""

from __future__ import annotations

from pathlib import Path

import pytest

import make_bed
from lrft.api.training.train import train
from lrft.recipe.load import load_recipe

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bed")
    text = folder / "text.txt"
    text.write_text("".join(path.read_text() for path in sorted((ROOT / "lrft" / "methods").rglob("*.py"))))
    arguments = ["--text", str(text), "--vocabulary", "400", "--steps", "6"]
    make_bed.main([str(folder / "one"), *arguments])
    make_bed.main([str(folder / "two"), *arguments])
    return folder


def test_the_same_arguments_give_the_same_bytes(bed):
    names = sorted(p.relative_to(bed / "one") for p in (bed / "one").rglob("*") if p.is_file())
    assert {"recipe.yaml", "train.jsonl", "valid.jsonl", "model/config.json"} <= {str(n) for n in names}
    for name in names:
        assert (bed / "one" / name).read_bytes() == (bed / "two" / name).read_bytes(), name


def test_held_out_text_is_not_trained_on(bed):
    seen = set((bed / "one" / "train.jsonl").read_text().splitlines())
    held_out = set((bed / "one" / "valid.jsonl").read_text().splitlines())
    assert held_out and not held_out & seen
    assert len(held_out) == pytest.approx(len(seen) / 19, abs=2)


@pytest.mark.parametrize("optimizer", ["adamw", "galore", "frugal", "fira", "apollo"])
def test_a_model_learns_from_random_weights(bed, tmp_path, optimizer):
    overrides = ["data.train.limit=60", "data.eval.limit=4", "train.batch_size=4", "train.device=cpu"]
    if optimizer not in ("adamw",):
        overrides.append(f"optimizer={{method: {optimizer}, update_every: 3}}")
    loaded = load_recipe(str(bed / "one" / "recipe.yaml"), [*overrides, "optimizer.lr=0.003"])
    result = train(loaded, tmp_path / "run", resume=False)
    assert result["best_eval_loss"] < 5.9  # a uniform guess over 402 tokens costs 6.0
