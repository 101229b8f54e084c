"""`data.dedup` and `data.drop_overlap`: which rows are left out, what is said of them, and that a run keeps to it."""

from __future__ import annotations

import json
import random
import shutil
from itertools import combinations
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lrft.api.training.train import train
from lrft.build.dataset import read_text
from lrft.build.rows import both_splits, held_out_rows, training_rows
from lrft.commands.data import app
from lrft.data.near import Texts, words
from lrft.data.removal import without_overlap, without_repeats
from lrft.data.rows import Rows
from lrft.recipe.load import load_recipe
from lrft.registry.axes import FORMATS
from lrft.registry.config import parse_choice
from lrft.registry.errors import DataError, RecipeError
from tests.each import each

FORM = FORMATS.get("prompt_completion")(parse_choice(FORMATS, "prompt_completion"))
LONG = "the quick brown fox jumps over the lazy dog and then runs back home again before dark"


def held(*pairs: tuple[str, str], name: str = "t.jsonl", **columns: str) -> Rows:
    rows = [{"prompt": a, "completion": b, **columns} for a, b in pairs]
    return Rows(rows, name, name, range(1, len(rows) + 1))


def drawn(count: int, seed: int, length: int = 40) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(f"w{draw.randrange(4000)}" for _ in range(length)) for _ in range(count)]


def altered(text: str, count: int, seed: int) -> str:
    draw, held = random.Random(seed), text.split()
    for place in draw.sample(range(len(held)), count):
        held[place] = "other"
    return " ".join(held)


def runs(text: str) -> set[tuple[str, ...]]:
    held = words(text)
    return {tuple(held[k : k + 3]) for k in range(len(held) - 2)}


def shared(a: str, b: str) -> float:
    return len(runs(a) & runs(b)) / len(runs(a) | runs(b))


def prompts(rows: Rows) -> list[str]:
    return [row["prompt"] for row in rows]


@each("share", [0.5, 0.65, 0.9])
def test_at_any_share_the_rows_left_are_those_that_comparing_every_pair_leaves(share):
    texts = drawn(35, 3)
    texts += [altered(text, k % 6, k) for k, text in enumerate(texts[:25])]
    kept, found = without_repeats(held(*((text, " x") for text in texts)), FORM, (), share)
    full = [f"{text} x" for text in texts]
    near = {k for j, k in combinations(range(len(texts)), 2) if shared(full[j], full[k]) >= share}
    assert prompts(kept) == [text for k, text in enumerate(texts) if k not in near]
    assert len(found.equal) + len(found.near) == len(near) > 3


def test_equal_rows_are_those_that_train_the_same():
    same = [("a", " b"), ("a", " b"), ("a", " c"), ("A", " b")]
    kept, found = without_repeats(held(*same), FORM, (), None)
    assert prompts(kept) == ["a", "a", "A"] and found.equal == (("t.jsonl:2", "t.jsonl:1", 1.0),)
    rows = Rows([{"prompt": "a", "completion": " b", "language": name} for name in "xyx"], "t", "t")
    assert len(without_repeats(rows, FORM, ("language",), None)[0]) == 2
    assert len(without_repeats(rows, FORM, (), None)[0]) == 1


def test_a_held_out_row_is_found_though_another_training_row_is_nearer():
    train = held((LONG, " yes"), (LONG + " again", " yes"), ("how so", " no"), ("other", " no"))
    kept, found = without_overlap(train, held((LONG, " no"), ("How so?", " yes"), name="h"), FORM, 0.7, None)
    assert prompts(kept) == ["other"]
    assert [row for row, *_ in found.held_out] == ["t.jsonl:1", "t.jsonl:2"]
    assert found.asked == (("t.jsonl:3", "h:2", 1.0),)


def test_a_text_that_stands_everywhere_is_found_where_it_is_held_out_too():
    form = FORMATS.get("text")(parse_choice(FORMATS, "text"))
    rows = Rows([{"text": LONG}] * 30 + [{"text": text} for text in drawn(20, 2)], "t", "t")
    kept, found = without_overlap(rows, Rows([{"text": LONG}], "h", "h"), form, 0.8, None)
    assert len(kept) == 20 and len(found.held_out) == 30 and not found.asked


def test_in_a_crowd_every_training_row_is_compared_with_several_held_out_ones():
    texts = drawn(6, 5)
    found = Texts()
    for text in [*texts, *(altered(text, 2, k) for k, text in enumerate(texts))]:
        found.add([text])
    pairs = found.near(0.6, before=6)
    assert [(p.earlier, p.later) for p in pairs] == [(k, k + 6) for k in range(6)]


@pytest.fixture
def recipe(tiny, tmp_path):
    """`recipe(*overrides)` -> a loaded recipe over forty texts, of which some repeat."""
    texts = drawn(30, 1, 24)
    rows = [*texts, *texts[:5], *(altered(text, 1, k) for k, text in enumerate(texts[:5]))]
    for name, chosen in (("train", rows), ("held", [texts[7], altered(texts[8], 1, 0), "nothing like it"])):
        lines = [json.dumps({"prompt": text, "completion": " yes"}) for text in chosen]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"model: {{name: {tiny()}, dtype: float32}}\n"
        f"data: {{train: {tmp_path}/train.jsonl, eval: {tmp_path}/held.jsonl, format: prompt_completion}}\n"
        "train: {max_steps: 2, batch_size: 2, max_length: 256, device: cpu, save_every: 1}\n"
        "adapter: {method: lora, rank: 2}\n"
    )
    return lambda *overrides: load_recipe(path, list(overrides))


def same_bytes(one: Path, other: Path) -> bool:
    files = [next((folder / "adapter").glob("*.safetensors")) for folder in (one, other)]
    return files[0].read_bytes() == files[1].read_bytes()


NEAR = "data.near_share=0.6"


def test_a_recipe_without_the_keys_is_the_recipe_it_was(recipe):
    plain = recipe().recipe
    assert both_splits(plain).removed is None and "removed" not in read_text(plain).record()


def test_both_keys_count_what_they_leave_out(recipe):
    chosen = recipe("data.dedup=near", "data.drop_overlap=true", NEAR).recipe
    text = read_text(chosen)
    record = text.record()["removed"]
    assert [record[kind] for kind in ("rows", "equal", "near", "held_out", "asked")] == [40, 5, 5, 2, 0]
    assert len(text.train) == 28 == len(training_rows(chosen)) and len(text.scored) == 3
    assert any(label == "rows left out, near an earlier one" for label, _ in text.facts())
    assert prompts(training_rows(chosen, 3)) == prompts(text.rows)[:3]


def test_of_a_split_nothing_stands_on_both_sides(recipe):
    chosen = recipe("~data.eval", "data.split=8", "data.dedup=near", "data.drop_overlap=true", NEAR).recipe
    found = both_splits(chosen)
    plain = recipe("~data.eval", "data.split=8").recipe
    assert prompts(held_out_rows(plain)) == prompts(found.held_out) and len(found.held_out) == 8
    texts = prompts(found.train)
    assert (
        len(texts)
        == len(set(texts))
        == len(training_rows(plain))
        - sum(found.removed.record()[kind] for kind in ("equal", "near", "held_out", "asked"))
    )
    assert prompts(held_out_rows(chosen)) == prompts(found.held_out)
    assert not [1 for a in prompts(found.train) for b in prompts(found.held_out) if shared(a, b) > 0.6]


def test_of_a_mixture_the_first_source_keeps_its_rows_and_none_may_lose_all(recipe, tmp_path):
    held, train_file = (f"{{source: {tmp_path}/{name}.jsonl, weight: 1}}" for name in ("held", "train"))
    text = read_text(recipe(f"data.train=[{held}, {train_file}]", "~data.eval", "data.dedup=exact").recipe)
    assert [share.rows for share in text.mixture.shares] == [3, 34]
    twice = f"data.train=[{held}, {held}]"
    with pytest.raises(DataError, match=r"no row of data\.train\.1, held-2, is left"):
        read_text(recipe(twice, "~data.eval", "data.dedup=exact").recipe)
    with pytest.raises(DataError, match="all 3 training rows would be left out"):
        read_text(recipe(f"data.train={tmp_path}/held.jsonl", "data.drop_overlap=true").recipe)


def test_a_run_records_what_was_left_out_and_goes_on_with_the_same_rows(recipe, tmp_path):
    keys = ["data.dedup=near", "data.drop_overlap=true", NEAR]
    folder = tmp_path / "run"
    whole = train(recipe(*keys), folder, resume=False)
    run, result = (json.loads((folder / name).read_text()) for name in ("run.json", "result.json"))
    assert run["gate"]["removed"]["near"] == result["removed_rows"]["near"] == 5
    cut = shutil.copytree(folder, tmp_path / "cut")
    shutil.rmtree(cut / "checkpoints" / "step-2")
    shutil.rmtree(cut / "adapter")
    again = train(recipe(*keys), cut, resume=True)
    assert again["loss"] == whole["loss"] and again["removed_rows"] == whole["removed_rows"]
    assert same_bytes(folder, cut)


def test_show_says_how_many_rows_are_left_out(recipe, tmp_path):
    path = str(tmp_path / "recipe.yaml")
    shown = CliRunner().invoke(app, ["show", path, "data.dedup=exact", "--rows", "1"], catch_exceptions=False)
    assert "rows left out, equal to an earlier one: 5 of 40" in shown.stderr


@each(
    ("overrides", "said"),
    [
        (["~data.eval", "data.drop_overlap=true"], "no held-out rows to compare with"),
        (["data.near_share=0.7"], "nothing compares rows"),
        (["data.near_share=0.7", "data.dedup=exact"], "nothing compares rows"),
        (["data.near_share=0.3", "data.dedup=near"], "near_share"),
    ],
)
def test_keys_that_say_nothing_are_refused(overrides, said, recipe):
    with pytest.raises(RecipeError, match=said):
        recipe(*overrides)
