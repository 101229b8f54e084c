"""Tables of the scaled tier: strict files, replayed by the same rules, judged by what they state."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lrft.compare.plan import check_comparable
from lrft.compare.scaled import load_scaled, run_scaled, scaled_arms
from lrft.core.errors import RecipeError

TABLES = sorted((Path(__file__).parents[2] / "recipes" / "tables" / "scaled").glob("[!_]*.yaml"))


@pytest.fixture
def table(recipe, tmp_path):
    """`table(key=value)` -> a table file whose arms are two ranks of the stand-in."""

    def write(**changes) -> Path:
        plain = {
            "title": "Ranks",
            "paper": "Nobody, 2026.",
            "claim": "A lower rank has a lower loss.",
            "provenance": "T",
            "tier": "scaled",
            "bed": "a formula",
            "scale": "It says nothing.",
            "recipe": recipe("base").name,
            "arms": [
                {"label": "low", "overrides": ["adapter.rank=2"]},
                {"label": "high", "overrides": ["adapter.rank=8"]},
            ],
            "lr_grid": [1e-1, 1e-2],
            "seeds": 3,
            "criteria": [{"arm": "low", "against": "high", "all_seeds": True}],
            **changes,
        }
        path = tmp_path / "table.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in plain.items() if value is not None}))
        return path

    return write


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_a_packaged_table_is_valid_and_its_arms_are_comparable(path):
    loaded = load_scaled(path)
    arms = scaled_arms(loaded, path)
    check_comparable(arms)
    assert [arm.label for arm in arms] == [arm.label for arm in loaded.arms]
    assert loaded.seeds >= 3
    assert len(loaded.lr_grid) >= 3


def test_there_are_packaged_tables():
    assert len(TABLES) >= 2


def test_a_claim_that_holds_is_confirmed_with_its_scale(stand_in, table, tmp_path):
    record = run_scaled(table(), tmp_path / "out", jobs=2)
    assert record["verdict"] == "confirmed"
    assert record["criteria"][0]["gain"] == pytest.approx(0.06)
    text = (tmp_path / "out" / "report.md").read_text()
    assert "Verdict: **confirmed**. It says nothing." in text
    assert "eval_loss of low, against high: lower at every seed" in text


def test_a_claim_that_does_not_hold_is_refuted(stand_in, table, tmp_path):
    path = table(criteria=[{"arm": "high", "against": "low", "all_seeds": True}])
    assert run_scaled(path, tmp_path / "out")["verdict"] == "refuted"


def test_fewer_seeds_decide_nothing_and_other_seeds_do(stand_in, table, tmp_path):
    assert run_scaled(table(), tmp_path / "out", seeds=2)["verdict"] == "not decidable"
    record = run_scaled(table(), tmp_path / "out", seeds=[10, 11, 12])
    assert (record["verdict"], record["seeds"]) == ("confirmed", [10, 11, 12])


def test_other_metrics_are_judged_too(stand_in, table, tmp_path):
    same = {"metric": "grad_norm@1", "arm": "low", "against": "high", "at_most_ratio": 2.0}
    record = run_scaled(table(criteria=[same]), tmp_path / "out")
    assert record["verdict"] == "confirmed"
    assert record["criteria"][0]["ratio"] == 1


def test_overrides_reach_every_arm_and_the_record(stand_in, table, tmp_path):
    path = table()
    arms = scaled_arms(load_scaled(path), path, ["train.max_steps=7"])
    assert [arm.recipe.train.max_steps for arm in arms] == [7, 7]
    record = run_scaled(path, tmp_path / "out", overrides=["train.clip=0.5"])
    assert record["overrides"] == ["train.clip=0.5"]
    assert "train.clip=0.5" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"claim": None}, "claim: Field required"),
        ({"colour": "red"}, "colour: Extra inputs"),
        ({"provenance": "M"}, "provenance: Input should be"),
        (
            {"criteria": [{"arm": "low", "against": "heigh", "all_seeds": True}]},
            "no arm 'heigh'; arms: low, high",
        ),
        ({"criteria": [{"arm": "low", "against": "high"}]}, r"criteria\.0: needs a condition"),
        ({"arms": [{"label": "low"}, {"label": "low"}]}, "same label"),
        ({"lr_grid": [0.1, 0.1]}, "given twice"),
        ({"seeds": 1}, "seeds: "),
    ],
)
def test_a_broken_table_is_refused_by_key(table, changes, message):
    with pytest.raises(RecipeError, match=message):
        load_scaled(table(**changes))


def test_a_broken_arm_is_named(table):
    path = table(arms=[{"label": "low"}, {"label": "high", "overrides": ["adapter.rnak=3"]}])
    with pytest.raises(RecipeError, match=r"arm 'high': .*adapter\.rnak"):
        scaled_arms(load_scaled(path), path)
