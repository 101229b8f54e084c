"""Rows encoded by several processes: what one process makes of them, and what it says of a row that it cannot use."""

from __future__ import annotations

import json
import os
import signal

import pytest
from typer.testing import CliRunner

from lrft.build.dataset import read_renderer, read_text
from lrft.commands.data import app
from lrft.data import encode_apart
from lrft.data.encode import BATCH, encode_each
from lrft.data.rows import Rows
from lrft.recipe.load import load_recipe
from lrft.registry.errors import DataError, UsageError

ROWS = 3 * BATCH + 41


def ended(rows):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def recipe(tiny, tmp_path):
    """`recipe(*overrides, wrong=None)` -> a recipe of conversations of all lengths, row `wrong` of which is none."""

    def make(*overrides, wrong=None):
        lines = [
            {
                "messages": [
                    {"role": r, "content": f"{'word ' * (k % 50)}{k}"} for r in ("user", "assistant")
                ],
                "id": k,
            }
            for k in range(ROWS)
        ]
        if wrong is not None:
            lines[wrong]["messages"] = "none"
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        path = tmp_path / "recipe.yaml"
        path.write_text(
            f"model: {{name: {tiny()}, dtype: float32}}\n"
            f"data: {{train: {tmp_path}/rows.jsonl, format: chat, too_long: truncate_left, template: chatml}}\n"
            "train: {max_steps: 1, batch_size: 4, max_length: 48, device: cpu}\n"
        )
        return load_recipe(path, list(overrides)).recipe

    return make


@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_makes_the_same(recipe, processes):
    wanted, found = (read_text(recipe("data.split=100"), processes=number) for number in (1, processes))
    assert found.train == wanted.train and found.scored == wanted.scored and len(found.train) > 2 * BATCH
    assert found.report == wanted.report and found.renderer.template.used
    ids = found.train[0].input_ids[:3]
    assert all(a is b for a, b in zip(ids, found.train[1].input_ids, strict=False) if a == b)


def test_documents_in_windows_are_those_of_one_process(recipe):
    texts = ("data.format=text", "data.too_long=windows", "data.template=null")
    chosen = recipe(*texts)
    path = chosen.data.train.source
    with open(path, "w") as file:
        file.writelines(json.dumps({"text": f"{'text ' * (k % 90)}{k}"}) + "\n" for k in range(ROWS))
    wanted, found = (read_text(chosen, processes=number) for number in (1, 2))
    assert found.train == wanted.train and len(found.train) > ROWS


@pytest.mark.parametrize("wrong", [0, BATCH + 7, ROWS - 1])
def test_the_first_row_that_cannot_be_used_is_named_as_by_one_process(recipe, wrong):
    said = []
    for processes in (1, 2):
        with pytest.raises(DataError) as error:
            read_text(recipe(wrong=wrong), processes=processes)
        said.append(str(error.value))
    assert said[0] == said[1] and f"rows.jsonl:{wrong + 1}: " in said[0]


class Unreadable:
    """Rows of a file that is read as they are asked for, one of which is none."""

    def __init__(self, rows, at):
        self.rows, self.at = rows, at

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        if index == self.at:
            raise DataError(f"file:{index}: cannot be read")
        return self.rows[index]


@pytest.mark.parametrize(
    ("wrong", "unreadable"), [(7, BATCH + 3), (7, 9), (BATCH + 3, BATCH), (9, 2 * BATCH)]
)
@pytest.mark.parametrize("late", [False, True], ids=["as it is rendered", "as it is cut"])
def test_a_row_that_cannot_be_read_is_told_in_its_turn(recipe, wrong, unreadable, late):
    """Rows are read ahead, of a batch and of several: an earlier one that cannot be used is told all the same."""
    labels = ("model.head=[a, b]", "objective=classify", "data.format=classify", "data.template=null")
    renderer = read_renderer(recipe(*labels) if late else recipe()).renderer
    turns = {"messages": [{"role": r, "content": "a"} for r in ("user", "assistant")]}
    rows = [{"text": "word", "label": "a"} if late else turns] * ROWS
    rows[wrong] = {"text": "word", "label": "c"} if late else {"messages": "none"}
    held, said = Rows(Unreadable(rows, unreadable), "file", ""), []
    for processes in (1, 2):
        with pytest.raises(DataError) as error:
            encode_each(held, renderer, processes=processes)
        said.append(str(error.value))
    first = f"file row {wrong}: " if wrong < unreadable else f"file:{unreadable}: cannot be read"
    assert said[0] == said[1] and said[0].startswith(first)


def test_a_process_that_the_system_ends_is_told(recipe, monkeypatch):
    monkeypatch.setattr(encode_apart, "_entries", ended)
    with pytest.raises(UsageError, match="--processes: the system ended one of them"):
        read_text(recipe(), processes=2)


def test_the_command_takes_them(recipe, tmp_path):
    recipe()
    runner, words = CliRunner(), ["check", str(tmp_path / "recipe.yaml"), "--json"]
    shown = [
        runner.invoke(app, [*words, "--processes", str(n)], catch_exceptions=False).stdout for n in (1, 2)
    ]
    assert json.loads(shown[0][shown[0].index("{") :]) == json.loads(shown[1][shown[1].index("{") :])
