"""Judged answers on their way from a row to a batch."""

from __future__ import annotations

import json

import pytest

import make_unpaired_data
from lrft.build.guess import guess
from lrft.data.collate import collate
from lrft.data.encoded import Encoded
from lrft.data.sources import read_rows
from lrft.registry.axes import FORMATS
from lrft.registry.config import Source, parse_choice
from lrft.registry.errors import DataError

TEXT = {"prompt": "2 + 2 =", "completion": " 4", "label": True}
ASKED, SAID = {"role": "user", "content": "2 + 2"}, {"role": "assistant", "content": "4"}


def form(**settings):
    config = parse_choice(FORMATS, {"method": "unpaired", **settings})
    return FORMATS.get("unpaired")(config)


def test_an_answer_is_read_with_its_judgement():
    for value, wanted in ((True, True), (False, False), (1, True), (0, False)):
        assert form().example({**TEXT, "label": value}).wanted is wanted
    for value in ("true", 2, 1.0, [True]):
        with pytest.raises(DataError, match=r"whether an answer is wanted is true or false"):
            form().example({**TEXT, "label": value})
    example = form().example(TEXT)
    assert (example.prompt, example.completion) == ("2 + 2 =", " 4")


def test_a_setting_judges_all_rows_and_the_column_is_then_not_read():
    bare = {"prompt": "a", "completion": "b"}
    assert form(wanted=False).example({**bare, "label": "x"}).wanted is False
    assert form(wanted=True).columns == ("completion",) and form().columns == ("completion", "label")


def test_messages_and_texts_give_the_same_conversation():
    rows = (
        {"prompt": [ASKED], "completion": [SAID], "label": 0},
        {"prompt": "2 + 2", "completion": [SAID], "label": 0},
        {"completion": [ASKED, SAID], "label": 0},
        {"prompt": [ASKED], "completion": "4", "label": 0},
    )
    for row in rows:
        example = form().example(row)
        assert example.messages == (ASKED, SAID) and example.learn == "last" and example.wanted is False
    assert form(render="chat").example({**TEXT, "prompt": "2 + 2", "completion": "4"}).messages == (
        ASKED,
        SAID,
    )
    with pytest.raises(DataError, match="must be an answer"):
        form().example({"completion": [ASKED, ASKED], "label": 0})
    with pytest.raises(DataError, match="weight 0"):
        form().example({"completion": [ASKED, {**SAID, "weight": 0}], "label": 0})


def test_judged_rows_are_never_guessed_to_be_answers_to_learn(tmp_path):
    rows = [TEXT, {**TEXT, "label": False}]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="fit prompt_completion and unpaired; write which one it is"):
        guess(read_rows(Source(source=str(file)), "train", 0, "data.train"))
    assert FORMATS.get("unpaired").guess({**TEXT, "label": "cat"}) is None


def test_a_row_that_only_asks_needs_no_judgement():
    assert form().asked({"prompt": "2 + 2 ="}).prompt == "2 + 2 ="
    assert form().questions == ("prompt",)


def test_the_batch_says_of_every_document_whether_it_is_wanted_and_where_its_targets_are():
    rows = [Encoded([1, 2, 3], [False, True, True], wanted=k != 1) for k in range(3)]
    batch = collate([rows[:2], rows[2:]], 0, None, [[0, 1], [2]])
    assert batch.wanted == (True, False, True) and batch.to("cpu").wanted == batch.wanted
    assert batch.targets_where(True).tolist() == [0, 1, 4, 5] and batch.targets_where(False).tolist() == [
        2,
        3,
    ]
    assert collate([[Encoded([1, 2], [False, True])]], 0, None, [[0]]).wanted == ()


def test_the_shipped_rows_are_those_of_their_script(tmp_path):
    make_unpaired_data.write(tmp_path)
    for name in ("train.jsonl", "test.jsonl"):
        assert (tmp_path / name).read_bytes() == (make_unpaired_data.FOLDER / name).read_bytes()
