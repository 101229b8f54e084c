"""Tables of the scaled tier: strict files, replayed by the same rules, judged by what they state."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

import make_bed
from lrft.lab.compare.arms import check_comparable
from lrft.lab.compare.comparison import Compared
from lrft.lab.tables.criterion import Criterion
from lrft.lab.tables.scaled.replay import judge, run_scaled
from lrft.lab.tables.scaled.table import expanded, load_scaled, located, scaled_arms
from lrft.registry.errors import RecipeError

ROOT = Path(__file__).parents[3]
TABLES = sorted((ROOT / "recipes" / "tables" / "scaled").glob("[!_]*.yaml"))


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


@pytest.fixture(scope="module")
def beds(tmp_path_factory):
    """Beds as scripts/make_beds makes them, untrained and on other text."""
    root = tmp_path_factory.mktemp("beds")
    text = root / "text.txt"
    text.write_text("".join(path.read_text() for path in sorted((ROOT / "lrft" / "core").rglob("*.py"))))
    for bed in ("p1", "p2"):
        files = ["--text", str(text), "--other", str(text)]
        make_bed.main([str(root / bed), *files, "--vocabulary", "300", "--size", bed])
        shutil.copytree(root / bed / "model", root / bed / "trained")
    for name in (
        "gsm8k/train.jsonl",
        "gsm8k/test.jsonl",
        "commonsense/ARC-Easy_train.json",
        "commonsense/ARC-Easy_test.json",
    ):
        (root / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "data" / name).write_text("{}\n")
    return root


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_a_packaged_table_is_valid_and_its_arms_are_comparable(path, beds, monkeypatch):
    monkeypatch.setenv("LRFT_BEDS", str(beds))
    monkeypatch.setenv("LRFT_DATA", str(beds / "data"))
    loaded = load_scaled(path)
    arms = scaled_arms(loaded, path)
    if len(arms) > 1:
        check_comparable(arms)
    labels = [arm.label for arm in loaded.arms]
    assert [arm.label for arm in arms] == [label for label in labels if label in {arm.label for arm in arms}]
    measured = ("peak_memory_bytes",)  # the same at every rate
    estimated = [one for one in loaded.criteria if not one.everywhere and one.metric not in measured]
    assert not estimated or (loaded.seeds >= 3 and len(loaded.lr_grid) >= 3)
    assert loaded.cost


def test_a_bed_that_is_not_there_is_told_with_how_to_make_it(monkeypatch, tmp_path):
    monkeypatch.setenv("LRFT_BEDS", str(tmp_path))
    with pytest.raises(RecipeError, match=r"the bed 'p1' is not under .*scripts/make_beds"):
        located("bed:p1/adapt.yaml", tmp_path / "table.yaml")


def test_real_data_are_asked_for_by_name(monkeypatch):
    monkeypatch.delenv("LRFT_DATA", raising=False)
    with pytest.raises(RecipeError, match="set LRFT_DATA"):
        expanded("data=$LRFT_DATA/gsm8k")
    monkeypatch.setenv("LRFT_DATA", "/data")
    assert expanded("data=$LRFT_DATA/gsm8k") == "data=/data/gsm8k"


def test_an_arm_whose_method_is_not_there_waits_for_it(stand_in, table, tmp_path):
    arms = [
        {"label": "low", "overrides": ["adapter.rank=2"]},
        {"label": "high", "overrides": ["adapter.rank=8"]},
        {"label": "new", "overrides": ["adapter.method=telepathy"]},
    ]
    criteria = [
        {"arm": "low", "against": "high", "all_seeds": True},
        {"arm": "new", "against": "high", "all_seeds": True},
    ]
    record = run_scaled(table(arms=arms, criteria=criteria), tmp_path / "out")
    assert (record["verdict"], record["absent"]) == ("confirmed", ["new"])
    assert [one["name"] for one in record["criteria"]] == ["confirmed", "method not in lrft yet"]
    text = (tmp_path / "out" / "report.md").read_text()
    assert "**confirmed**, as far as it can be judged: new wait for a method." in text


def test_tables_that_share_a_folder_share_runs_and_have_reports_of_their_own(stand_in, table, tmp_path):
    for name in ("one", "two"):
        run_scaled(table(title=name), tmp_path / "runs", report=tmp_path / name)
        assert (tmp_path / name / "report.md").read_text().startswith(f"# {name}")
    started = (tmp_path / "runs" / "started").read_text().splitlines()
    assert len(started) == len(set(started)) == 10  # two arms at two rates, and at three seeds


def test_a_keyed_metric_without_everywhere_is_an_error_that_says_so(table, tmp_path):
    found = Compared([], {"low": [], "high": []}, {})
    criterion = Criterion(arm="low", against="high", everywhere=True, metric="x")
    assert (
        judge(load_scaled(table(criteria=[criterion.model_dump()], seeds=1)), found)[0].name
        == "not decidable"
    )


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
        ({"seeds": 1}, "one seed decides only"),
    ],
)
def test_a_broken_table_is_refused_by_key(table, changes, message):
    with pytest.raises(RecipeError, match=message):
        load_scaled(table(**changes))


def test_a_broken_arm_is_named(table):
    path = table(arms=[{"label": "low"}, {"label": "high", "overrides": ["adapter.rnak=3"]}])
    with pytest.raises(RecipeError, match=r"arm 'high': .*adapter\.rnak"):
        scaled_arms(load_scaled(path), path)
