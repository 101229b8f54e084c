from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from lrft.commands.data import app
from lrft.registry.errors import DataError, RecipeError, UsageError

RECIPE = """
model: {{name: {model}, dtype: float32}}
data: {{train: {rows}, format: prompt_completion}}
train: {{max_length: {max_length}}}
"""


@pytest.fixture
def recipe(tiny, tmp_path):
    def write(max_length=64):
        rows = tmp_path / "rows.jsonl"
        rows.write_text('{"prompt": "two plus two is", "completion": " four"}\n' * 4)
        file = tmp_path / "recipe.yaml"
        file.write_text(RECIPE.format(model=tiny(), rows=rows, max_length=max_length))
        return str(file)

    return write


def test_show_marks_what_is_learnt_and_prints_as_many_rows_as_asked(recipe, tmp_path):
    result = CliRunner().invoke(app, ["show", recipe(), "--rows", "2"], catch_exceptions=False)
    assert result.exit_code == 0
    assert result.output.count("⟦") == result.output.count("⟧") == 2
    assert f"{tmp_path / 'rows.jsonl'}:2: " in result.output and "rows.jsonl:3" not in result.output


def test_check_prints_the_counts_and_passes_good_data(recipe):
    result = CliRunner().invoke(app, ["check", recipe()], catch_exceptions=False)
    assert result.exit_code == 0
    assert "rows: 4\n" in result.output and "duplicates: 3" in result.output


def test_check_ends_in_a_data_error_after_printing_the_counts(recipe):
    result = CliRunner().invoke(app, ["check", recipe(), "train.max_length=2"])
    assert isinstance(result.exception, DataError) and result.exception.exit_code == 3
    assert "longer than the limit: 4" in result.output


def test_overrides_reach_the_data(recipe):
    result = CliRunner().invoke(
        app, ["check", recipe(2), "data.too_long=truncate_left"], catch_exceptions=False
    )
    assert result.exit_code == 0 and "truncated: 4" in result.output


def test_a_field_that_no_text_holds_is_shown_and_refused_unless_it_is_ignored(recipe, tmp_path):
    file = recipe()
    turns = '{"role": "user", "content": "how?", "name": "Ann"}, {"role": "assistant", "content": "so"}'
    (tmp_path / "rows.jsonl").write_text(f'{{"messages": [{turns}]}}\n')
    shown = CliRunner().invoke(app, ["show", file, "data.format=chat"], catch_exceptions=False)
    assert shown.exit_code == 0 and "⟦so" in shown.output
    checked = CliRunner().invoke(app, ["check", file, "data.format=chat"])
    assert isinstance(checked.exception, DataError) and "1 of 1 rows have `name`" in str(checked.exception)
    assert "not in the text: name (1)" in checked.output
    ignored = ["data.format={method: chat, ignore: [name]}"]
    assert CliRunner().invoke(app, ["check", file, *ignored], catch_exceptions=False).exit_code == 0


def test_show_takes_rows_by_the_places_that_reports_name(recipe, tmp_path):
    file = recipe()
    for place in ("3", "rows.jsonl:3", f"{tmp_path / 'rows.jsonl'}:3"):
        shown = CliRunner().invoke(app, ["show", file, "--at", place, "--at", "1"], catch_exceptions=False)
        places = [line for line in shown.output.splitlines() if "rows.jsonl:" in line]
        assert [line.partition("rows.jsonl:")[2][:2] for line in places] == ["3:", "1:"]
    missing = CliRunner().invoke(app, ["show", file, "--at", "31"])
    assert isinstance(missing.exception, UsageError)
    assert f"--at 31: no row stands there; rows are {tmp_path / 'rows.jsonl'}:1 to" in str(missing.exception)


def test_show_prints_the_token_ids_of_what_it_shows(recipe):
    file = recipe()
    (row,) = shown_as_json(file, "--rows", "1", "--ids")
    ids = [number for segment in row["segments"] for number in segment["ids"]]
    learnt = [number for segment in row["segments"] if segment["learnt"] for number in segment["ids"]]
    assert len(ids) == row["tokens"] and len(learnt) == row["learnt"] > 0
    printed = CliRunner().invoke(app, ["show", file, "--rows", "1", "--ids"], catch_exceptions=False).output
    front = " ".join(map(str, ids[: len(ids) - len(learnt)]))
    assert f"{front} ⟦{' '.join(map(str, learnt))}⟧" in printed.splitlines()
    assert "ids" not in shown_as_json(file, "--rows", "1")[0]["segments"][0]


def test_show_prints_held_out_rows_when_it_is_asked_for_them(recipe, tmp_path):
    file = recipe()
    absent = CliRunner().invoke(app, ["show", file, "--split", "eval"])
    assert isinstance(absent.exception, RecipeError) and "data.eval" in str(absent.exception)
    (tmp_path / "held.jsonl").write_text('{"prompt": "and now", "completion": " five"}\n')
    shown = shown_as_json(file, f"data.eval={tmp_path / 'held.jsonl'}", "--split", "eval")
    assert [row["where"] for row in shown] == [f"{tmp_path / 'held.jsonl'}:1"]
    with pytest.raises(UsageError, match="--split dev: there are train and eval"):
        CliRunner().invoke(app, ["show", file, "--split", "dev"], catch_exceptions=False)


def test_show_says_where_every_document_lies_in_packed_rows(recipe, tmp_path):
    file = recipe()
    packed = shown_as_json(file, "--packed", "train.max_length=27", "train.batch_size=1")
    tokens = shown_as_json(file, "--rows", "1")[0]["tokens"]
    assert (packed["examples"], packed["capacity"]) == (4, 27) and 27 // tokens == 2 == packed["rows"]
    assert packed["full"] == pytest.approx(4 * tokens / 54)
    documents = [document for row in packed["first"] for document in row["documents"]]
    assert {document["where"] for document in documents} == {
        f"{tmp_path / 'rows.jsonl'}:{k}" for k in range(1, 5)
    }
    assert [(d["start"], d["end"]) for d in packed["first"][0]["documents"]] == [
        (0, tokens),
        (tokens, 2 * tokens),
    ]
    assert [(row["step"], row["micro_batch"], row["row"]) for row in packed["first"]] == [
        (1, 1, 1),
        (2, 1, 1),
    ]
    printed = CliRunner().invoke(
        app, ["show", file, "--packed", "train.max_length=27"], catch_exceptions=False
    )
    assert f"4 rows in 2 packed rows of 27 tokens, {packed['full']:.1%} full" in printed.output
    with pytest.raises(UsageError, match="leave out --at, --ids and --split"):
        CliRunner().invoke(app, ["show", file, "--packed", "--ids"], catch_exceptions=False)
    with pytest.raises(RecipeError, match=r"train\.packing: it is false"):
        CliRunner().invoke(app, ["show", file, "--packed", "train.packing=false"], catch_exceptions=False)


def test_the_packed_rows_that_are_shown_are_those_of_training(recipe):
    from lrft.build.dataset import read_text
    from lrft.build.steps import train_data
    from lrft.recipe.load import load_recipe

    loaded = load_recipe(recipe(), ["train.max_length=27", "train.batch_size=2"]).recipe
    text = read_text(loaded)
    batch = train_data(loaded, text, packing=True).at(0).micro_batches[0]
    packed = shown_as_json(recipe(), "--packed", "train.max_length=27", "train.batch_size=2")
    packed["first"] = packed["first"][:2]
    shown = [(k, d["start"], d["end"]) for k, row in enumerate(packed["first"]) for d in row["documents"]]
    assert list(batch.documents) == shown
    lines = [d["where"].rpartition(":")[2] for row in packed["first"] for d in row["documents"]]
    assert lines == [str(index + 1) for index in batch.examples]


def test_check_tells_lengths_near_duplicates_and_prompts(recipe, tmp_path):
    file = recipe()
    row = {"prompt": "Where do the ferries stop in January", "completion": " at the harbour of the old town"}
    with (tmp_path / "rows.jsonl").open("a") as rows:
        rows.write(json.dumps(row) + "\n")
    again = {**row, "completion": row["completion"].upper() + "!"}
    (tmp_path / "held.jsonl").write_text(json.dumps(again) + "\n")
    arguments = ["check", file, f"data.eval={tmp_path / 'held.jsonl'}"]
    printed = CliRunner().invoke(app, arguments, catch_exceptions=False).output
    assert "suggested train.max_length: 64, which holds all rows" in printed
    assert f"held-out rows near a training row: 1 (first: {tmp_path / 'held.jsonl'}:1 like" in printed
    assert "prompts as generated: the beginning of the row as trained, in 5 of 5 rows" in printed
    found = json.loads(CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False).stdout)
    assert found["lengths"]["bins"] == [[1, 64, 5]] and found["rows_compared"] == 5
    assert found["held_out_near_training"][0]["like"] == f"{tmp_path / 'rows.jsonl'}:5"
    assert found["near_duplicates"] == [] and found["duplicates"] == 3


def shown_as_json(*arguments):
    return json.loads(CliRunner().invoke(app, ["show", *arguments, "--json"], catch_exceptions=False).stdout)


def test_show_prints_what_a_split_holds_out(recipe, tmp_path):
    file = recipe()
    written = [{"prompt": f"two plus {k} is", "completion": f" {k + 2}"} for k in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, written)) + "\n")
    train = shown_as_json(file, "data.split=2", "--rows", "20")
    held_out = shown_as_json(file, "data.split=2", "--rows", "20", "--split", "eval")
    places = [row["where"].rpartition(":")[2] for row in (*train, *held_out)]
    assert (len(train), len(held_out)) == (6, 2) and sorted(places) == [str(k) for k in range(1, 9)]
