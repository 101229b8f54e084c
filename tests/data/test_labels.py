"""What a row says of its label, and the texts of the classify format."""

from __future__ import annotations

import math

import pytest

from lrft.data.labels import label_of, name_of
from lrft.registry.axes import FORMATS
from lrft.registry.config import parse_choice
from lrft.registry.errors import DataError

NAMES = ("negative", "neutral", "positive")
STARS = ("1", "2", "3")


def made(**settings):
    return FORMATS.get("classify")(parse_choice(FORMATS, {"method": "classify", **settings}))


@pytest.mark.parametrize(
    ("value", "labels", "expected"),
    [
        ("neutral", NAMES, 1),
        (2, NAMES, 2),
        (1, STARS, 0),  # numbers that are names are names
        ("3", STARS, 2),
        ("2", NAMES, 2),  # of a file whose values are all text
        (True, ("false", "true"), 1),
        (3.5, ("stars",), 3.5),
        ("-2", ("stars",), -2),
        (None, NAMES, None),
    ],
)
def test_a_label_is_its_name_or_its_place_or_a_number(value, labels, expected):
    assert label_of(value, labels) == expected


@pytest.mark.parametrize(
    ("value", "labels"),
    [
        ("Neutral", NAMES),
        (-1, NAMES),  # what hubs write where a label is kept back
        (3, NAMES),
        (0, STARS),
        (True, NAMES),
        (1.0, NAMES),
        ("3", NAMES),
        ("-1", NAMES),
        ("1.0", NAMES),
        ([1], NAMES),
        (math.nan, ("stars",)),
        ("many", ("stars",)),
        (True, ("stars",)),
        (10**400, ("stars",)),
        ("positive", ()),
    ],
)
def test_what_is_none_is_refused(value, labels):
    with pytest.raises(DataError, match="label"):
        label_of(value, labels)


def test_a_label_is_shown_by_its_name():
    assert name_of(2.0, NAMES) == "positive" and name_of(3.5, ("stars",)) == "3.5"


def test_several_columns_are_one_text():
    form = made(text=["premise", "hypothesis"], between=" => ")
    row = {"premise": "It rains.", "hypothesis": "It is wet.", "label": 1}
    assert form.example(row).prompt == "It rains. => It is wet." and form.example(row).label == 1
    with pytest.raises(DataError, match="'hypothesis'"):
        form.example({"premise": "It rains.", "label": 1})
    with pytest.raises(DataError, match="'label'"):
        form.example({**row, "label": None})
    with pytest.raises(DataError, match="is empty"):
        made().example({"text": " ", "label": 1})


def test_a_chat_is_rendered_whole():
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    assert made(text="talk").example({"talk": said, "label": 0}).messages == tuple(said)
    made_of = made(render="chat", system="Judge.").example({"text": "Hi", "label": 0})
    assert [turn["role"] for turn in made_of.messages] == ["system", "user"]
    with pytest.raises(DataError, match="asks for a label"):
        made().asked({"text": "Hi"})
