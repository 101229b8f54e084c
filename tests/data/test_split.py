"""`data.split` and `take`: rows drawn by a seed."""

from __future__ import annotations

import json

import pytest

from lrft.data.formats._format import Format
from lrft.data.rows import Rows, joined
from lrft.data.sources import read_rows
from lrft.data.split import split_rows
from lrft.registry.axes import FORMATS
from lrft.registry.config import Source, parse_choice
from lrft.registry.errors import DataError


def form(name: str) -> Format:
    config = parse_choice(FORMATS, name)
    return FORMATS.get(name)(config)


def held(texts, name="t.jsonl"):
    return Rows(
        [{"text": text, "id": k} for k, text in enumerate(texts)], name, name, range(1, len(texts) + 1)
    )


def texts(rows):
    return [row["text"] for row in rows]


def test_a_share_or_a_number_of_rows_is_held_out_in_the_order_of_the_file():
    rows = held([f"text {k}" for k in range(40)])
    for wanted, count in ((0.25, 10), (7, 7), (0.001, 1)):
        train, scored = split_rows(rows, form("text"), wanted, seed=0)
        assert len(scored) == count and len(train) == 40 - count
        assert sorted(texts(train) + texts(scored)) == sorted(texts(rows))
        assert texts(scored) == sorted(texts(scored), key=lambda text: int(text.split()[1]))
    assert scored.where(0) == f"t.jsonl:{int(texts(scored)[0].split()[1]) + 1}"


def test_the_seed_alone_decides_which():
    rows = held([f"text {k}" for k in range(40)])
    drawn = [texts(split_rows(rows, form("text"), 10, seed)[1]) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_rows_that_say_the_same_stay_on_one_side():
    """They differ in a column that no text holds."""
    rows = held([f"text {k % 13}" for k in range(60)])
    for seed in range(8):
        train, scored = split_rows(rows, form("text"), 0.2, seed)
        assert not set(texts(train)) & set(texts(scored)) and 0 < len(scored) <= 12


def test_pairs_with_one_chosen_answer_stay_on_one_side():
    pairs = [{"prompt": "p", "chosen": f" {k % 4}", "rejected": f" {k + 9}"} for k in range(12)]
    train, scored = split_rows(Rows(pairs, "p", ""), form("preference"), 6, 3)
    assert not {row["chosen"] for row in train} & {row["chosen"] for row in scored}


def test_what_leaves_one_side_empty_is_refused():
    with pytest.raises(DataError, match=r"data\.split: 40 held-out rows of 40 leave none to train on"):
        split_rows(held([f"text {k}" for k in range(40)]), form("text"), 40, 0)
    with pytest.raises(DataError, match=r"data\.split: 1 of 9 rows cannot be held out.* at least 9 of each"):
        split_rows(held(["same"] * 9), form("text"), 1, 0)


def test_a_row_that_no_format_reads_is_named_by_its_line():
    with pytest.raises(DataError, match=r"^t\.jsonl:2: column 'text' is null"):
        split_rows(held(["a", None, "b"]), form("text"), 1, 0)


def test_both_sides_know_their_sources():
    rows = joined(
        [held([f"a{k}" for k in range(20)], "a"), held([f"b{k}" for k in range(20)], "b")], "x", ["a", "b"]
    )
    for side in split_rows(rows, form("text"), 0.5, 0):
        assert [side.sources[side.source(k)] for k in range(len(side))] == [text[0] for text in texts(side)]
        assert side.where(0).startswith("a:")


def test_take_draws_rows_by_the_seed_and_keeps_their_order_and_lines(tmp_path):
    file = tmp_path / "r.jsonl"
    file.write_text("".join(json.dumps({"n": k}) + "\n" for k in range(50)))

    def taken(seed, **settings):
        rows = read_rows(Source(source=str(file), **settings), "train", seed)
        return [row["n"] for row in rows], rows

    first, rows = taken(0, take=10)
    assert first == taken(0, take=10)[0] == sorted(first) != taken(1, take=10)[0] and len(set(first)) == 10
    assert first != list(range(10))
    assert rows.where(3) == f"{file}:{first[3] + 1}"
    assert max(taken(0, take=10, limit=20)[0]) < 20, "of a limit, of those within it"
    assert taken(0, take=99)[0] == list(range(50))


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("t.jsonl", "there is one row; name held-out rows as data.eval"),
        ("book.txt", "there is one row; write row: line beside source for a row a line, or name held-out"),
    ],
)
def test_one_row_is_not_split_and_what_would_work_is_said(name, remedy):
    with pytest.raises(DataError, match=f"1 held-out rows of 1 leave none to train on; {remedy}"):
        split_rows(held(["a"], name), form("text"), 0.1, 0)
