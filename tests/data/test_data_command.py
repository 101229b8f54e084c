from __future__ import annotations

import pytest
from typer.testing import CliRunner

from lrft.commands.data import app
from lrft.registry.errors import DataError

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
