"""Word problems: the number in a column, and how near the last number of an output has to be."""

from __future__ import annotations

import os
from decimal import Decimal
from pathlib import Path

import pytest

from lrft.data.sources import read_rows
from lrft.evaluation.tasks.svamp import gold_number
from lrft.registry.axes import TASKS
from lrft.registry.config import Source, parse_choice
from lrft.registry.errors import DataError


def row(answer: object, **more: object) -> dict:
    return {"instruction": f"What is {answer}?", "input": "", "output": "x", "answer": answer, **more}


ROWS = [row("7.0"), row("3.3333"), row(12), row("-5"), row("1,200")]
# Right: 7 = 7.0; |3.333 - 3.3333| <= .001; not 12.01; the last of two; a comma.
OUTPUTS = ["It is 7.", "3.333", "12.01", "first 5, then -5", "$1,200"]


@pytest.fixture
def scored(make_subject, say):
    def score(rows, outputs, task="svamp", **options):
        subject = make_subject(rows=rows, format="instruction")
        say(subject, outputs, **options)
        return TASKS.get("svamp")(parse_choice(TASKS, task)).run(subject, None)

    return score


def test_the_last_number_has_to_be_within_a_thousandth(scored):
    found = scored(ROWS, OUTPUTS, unstopped=(2,))
    assert [sample["correct"] for sample in found.samples] == [True, True, False, True, True]
    assert found.metrics["accuracy"] == 0.8 and found.metrics["unstopped"] == 0.2
    assert found.metrics["accuracy_stderr"] == pytest.approx((0.8 * 0.2 / 4) ** 0.5)
    assert [sample["gold"] for sample in found.samples] == ["7.0", "3.3333", "12", "-5", "1200"]
    assert (found.version, found.settings["answer"]) == ("svamp-last-number-1", "answer")
    assert scored(ROWS[:1], ["no idea"]).metrics["accuracy"] == 0


def test_another_column_may_hold_the_number(scored):
    rows = [row("ignored", Answer=4.0)]
    assert scored(rows, ["4"], {"method": "svamp", "answer": "Answer"}).metrics["accuracy"] == 1


@pytest.mark.parametrize("answer", ["", "seven", "4 apples", None])
def test_a_row_without_a_number_is_refused_by_line(scored, answer):
    with pytest.raises(DataError, match=r"^made\.jsonl:2: column 'answer' holds no number"):
        scored([ROWS[0], row(answer)], OUTPUTS)


@pytest.mark.parametrize(("name", "rows"), [("AddSub", 395), ("MultiArith", 600), ("mawps", 238)])
def test_every_row_of_the_arithmetic_sets_has_its_number(name, rows):
    folder = os.environ.get("LRFT_DATA")
    if folder is None:
        pytest.skip("set LRFT_DATA to a folder that holds arithmetic/*_test.json")
    found = read_rows(Source(source=str(Path(folder) / "arithmetic" / f"{name}_test.json")), "eval")
    numbers = [gold_number(made, "answer") for made in found]
    assert len(numbers) == rows and all(isinstance(number, Decimal) for number in numbers)
