"""Which files a source means, what is read of them, and that large ones are not held in memory."""

from __future__ import annotations

import json
import tracemalloc

import pyarrow
import pytest

from lrft.data import json_rows
from lrft.data.parquet_rows import ParquetRows
from lrft.data.sources import labels, read_rows, read_sources
from lrft.data.text_lines import IndexedLines
from lrft.registry.config import MixedSource, Source
from lrft.registry.errors import DataError


def read(path, role="train", **settings):
    return read_rows(Source(source=str(path), **settings), role)


def write(folder, **files):
    """A file of rows `{"a": value}` for every name, `train` in train.jsonl."""
    for name, values in files.items():
        text = "".join(json.dumps({"a": value}) + "\n" for value in values)
        (folder / f"{name.replace('__', '-')}.jsonl").write_text(text)


def values(rows):
    return [row["a"] for row in rows]


def test_a_pattern_is_its_files_in_the_order_of_their_names(tmp_path):
    write(tmp_path, b="xy", a="u", c="z")
    rows = read(tmp_path / "[ab].jsonl")
    assert values(rows) == ["u", "x", "y"] and rows[2] == {"a": "y"}
    assert [rows.where(k) for k in range(3)] == [
        f"{tmp_path}/a.jsonl:1",
        f"{tmp_path}/b.jsonl:1",
        f"{tmp_path}/b.jsonl:2",
    ]
    assert values(read(tmp_path / "*.jsonl", limit=2)) == ["u", "x"]
    before = rows.fingerprint
    write(tmp_path, b="xyz")
    assert read(tmp_path / "[ab].jsonl").fingerprint != before


def test_a_pattern_reaches_into_folders_and_must_match(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    write(tmp_path / "deep" / "er", x="1")
    assert values(read(tmp_path / "**" / "*.jsonl")) == ["1"]
    with pytest.raises(DataError, match=r"data\.train\.source: no file matches .*\*\.csv"):
        read(tmp_path / "*.csv")
    with pytest.raises(DataError, match=r"data\.train\.split: .* is a pattern and has no splits"):
        read(tmp_path / "deep" / "*" / "*.jsonl", split="train")


def test_a_folder_of_shards_is_all_of_them(tmp_path):
    write(tmp_path, part_2="b", part_1="a", part_3="c")
    assert values(read(tmp_path)) == ["a", "b", "c"]
    (tmp_path / "more.csv").write_text("a\nd\n")
    with pytest.raises(DataError, match=r"holds files of several kinds \(\.csv, \.jsonl\).*/\*\.csv"):
        read(tmp_path)


def test_shards_named_after_a_split_are_that_split_and_all_there(tmp_path):
    write(tmp_path, train__00001__of__00002="b", train__00000__of__00002="a", test__00000__of__00001="t")
    assert values(read(tmp_path)) == ["a", "b"] and values(read(tmp_path, "eval")) == ["t"]
    (tmp_path / "train-00001-of-00002.jsonl").unlink()
    with pytest.raises(DataError, match=r"has 1 shards of train where their names say 2"):
        read(tmp_path)
    (tmp_path / "test-00000-of-00001.jsonl").rename(tmp_path / "dev.jsonl")
    with pytest.raises(DataError, match=r"no file called nope; it has dev\.jsonl, train-00000"):
        read(tmp_path, split="nope")


def test_parquet_shards_are_read_as_one(tmp_path):
    from datasets import Dataset

    for part, rows in enumerate([["a", "b"], ["c"]]):
        Dataset.from_dict({"a": rows}).to_parquet(tmp_path / f"part-{part}.parquet")
    rows = read(tmp_path)
    assert values(rows) == ["a", "b", "c"] and rows.where(2) == f"{tmp_path}/part-1.parquet row 0"


def test_a_text_file_is_one_document_or_a_row_a_line(tmp_path):
    file = tmp_path / "t.txt"
    file.write_bytes("\ufeffone\r\n\n  two \nthree".encode())
    whole = read(file)
    assert list(whole) == [{"text": "one\r\n\n  two \nthree"}] and whole.where(0) == f"{file}:1"
    lines = read(file, row="line")
    assert list(lines) == [{"text": "one"}, {"text": "  two "}, {"text": "three"}]
    assert lines.where(1) == f"{file}:3"
    (tmp_path / "u.txt").write_text("four")
    assert [row["text"] for row in read(tmp_path)] == [whole[0]["text"], "four"]
    (tmp_path / "blank.txt").write_text(" \n\n")
    for row in ("file", "line"):
        with pytest.raises(DataError, match=r"blank\.txt:1: the file has no rows"):
            read(tmp_path / "blank.txt", row=row)


def test_rows_of_lines_are_of_text_files_alone(tmp_path):
    write(tmp_path, a="x")
    with pytest.raises(DataError, match=r"data\.train\.row: line is about \.txt files"):
        read(tmp_path, row="line")


@pytest.mark.parametrize("frames", [1, 2])
def test_zstd_is_read_to_its_last_frame(tmp_path, frames):
    file = tmp_path / "r.jsonl.zst"
    packed = pyarrow.compress(b'{"a": "x"}\n' * 3, codec="zstd", asbytes=True)
    file.write_bytes(packed * frames)
    rows = read(file)
    assert values(rows) == ["x"] * 3 * frames and rows.where(2) == f"{file}:3"
    file.write_bytes((packed * frames)[:-5])
    with pytest.raises(DataError, match=r"r\.jsonl\.zst:\d+: the zstd data is damaged"):
        list(read(file))


def test_what_is_no_zstd_is_said_to_be_damaged(tmp_path):
    (tmp_path / "r.txt.zst").write_bytes(b"plain")
    with pytest.raises(DataError, match=r"r\.txt\.zst:1: the zstd data is damaged"):
        read(tmp_path / "r.txt.zst")


def test_several_sources_have_short_names_and_their_own_errors(tmp_path):
    write(tmp_path, a="xy", b="z")
    given = [MixedSource(source=str(tmp_path / f"{name}.jsonl")) for name in "ab"]
    rows = read_sources(given, "train")
    assert rows.sources == ("a", "b") and [rows.source(k) for k in range(3)] == [0, 0, 1]
    assert values(rows.first(1)) == ["x", "z"], "the first row of each"
    given[1] = MixedSource(source=str(tmp_path / "c.jsonl"))
    with pytest.raises(DataError, match=r"data\.train\.1\.source: no file .*c\.jsonl"):
        read_sources(given, "train")
    assert labels(["x/gsm8k.jsonl", "y/gsm8k.csv", "z/*.jsonl", "openai/gsm8k:train", "a b.txt"]) == [
        "gsm8k",
        "gsm8k-2",
        "z",
        "gsm8k-3",
        "a_b",
    ]
    assert labels(["a-2.csv", "a.csv", "b/a.csv"]) == ["a-2", "a", "a-3"]


def test_a_list_of_one_source_is_that_source_unless_it_is_repeated_or_capped(tmp_path):
    write(tmp_path, a="xy")
    repeated = MixedSource(source=str(tmp_path / "a.jsonl"), repeat=2)
    assert read_sources([repeated], "train").sources == ("a",)
    rows = read_sources([MixedSource(source=str(tmp_path / "a.jsonl"))], "train")
    assert rows.sources == () and rows.fingerprint == read(tmp_path / "a.jsonl").fingerprint


LINES = ['{"a": "x"}\n', "\n", '{"a": "ä"}\r\n', '{"a": "z"}']


@pytest.fixture
def large(monkeypatch):
    monkeypatch.setattr(json_rows, "LARGE", 1)


def test_a_large_file_gives_the_rows_that_a_small_one_gives(tmp_path, large):
    file = tmp_path / "r.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + "".join(LINES).encode())
    rows = read(file)
    assert isinstance(rows.rows, IndexedLines)
    assert values(rows) == [rows[k]["a"] for k in range(3)] == ["x", "ä", "z"]
    assert [rows.where(k) for k in range(3)] == [f"{file}:{line}" for line in (1, 3, 4)]
    assert len(read(file, limit=2)) == 2
    assert len(read(file, take=2)) == 2


@pytest.mark.parametrize(
    ("line", "part"),
    [(b'{"a": y}\n', "not valid JSON"), (b'{"a": "\xff"}\n', "not UTF-8"), (b"3\n", "a number")],
)
def test_a_malformed_row_of_a_large_file_is_told_when_it_is_read(tmp_path, large, line, part):
    file = tmp_path / "r.jsonl"
    file.write_bytes(b'{"a": "x"}\n' + line)
    with pytest.raises(DataError, match=rf"^{file}:2: .*{part}"):
        list(read(file))


def test_a_large_text_file_is_read_by_its_lines(tmp_path, large):
    (tmp_path / "t.txt").write_text("one\n\ntwo\r\n")
    rows = read(tmp_path / "t.txt", row="line")
    assert isinstance(rows.rows, IndexedLines) and list(rows) == [{"text": "one"}, {"text": "two"}]


def test_a_large_parquet_file_gives_the_rows_that_a_small_one_gives(tmp_path, monkeypatch):
    from datasets import Dataset

    file = tmp_path / "r.parquet"
    turns = [[{"role": "user", "content": f"{k}", "name": "x" if k % 2 else None}] for k in range(25)]
    Dataset.from_dict({"messages": turns, "n": list(range(25))}).to_parquet(file, batch_size=7)
    small = read(file)
    monkeypatch.setattr(json_rows, "LARGE", 1)
    rows = read(file)
    assert isinstance(rows.rows, ParquetRows) and len(rows.rows.ends) == 4
    assert list(rows) == list(small) and rows[13] == small[13] and rows.fingerprint == small.fingerprint
    assert len(read(file, limit=9)) == 9
    file.write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(DataError, match=r"r\.parquet: no readable parquet file\."):
        read(file)


def peak(work):
    """Most bytes that Python held while `work` ran."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_going_through_a_large_file_holds_one_row_at_a_time(tmp_path, monkeypatch):
    file = tmp_path / "r.jsonl"
    rows, size = 4000, 2000
    file.write_text("".join(json.dumps({"a": f"{k:0{size}}"}) + "\n" for k in range(rows)))
    held = peak(lambda: list(read(file)))
    monkeypatch.setattr(json_rows, "LARGE", 2**20)
    found = peak(lambda: [row["a"] for row in read(file, take=100)] and sum(1 for _ in read(file)))
    assert held > rows * size, "the small way holds every row"
    assert found < rows * size / 10


def test_of_a_large_parquet_file_one_row_group_is_held(tmp_path, monkeypatch):
    from datasets import Dataset

    file = tmp_path / "r.parquet"
    Dataset.from_dict({"a": [f"{k:02000}" for k in range(2000)]}).to_parquet(file, batch_size=100)
    before = pyarrow.total_allocated_bytes()
    small = read(file)
    assert pyarrow.total_allocated_bytes() - before > 2000 * 2000, "the small way holds every row"
    del small
    monkeypatch.setattr(json_rows, "LARGE", 1)
    before = pyarrow.total_allocated_bytes()
    rows = read(file)
    assert sum(1 for _ in rows) == 2000
    # A group is a twentieth; those before it may not have been let go of yet.
    assert 0 < pyarrow.total_allocated_bytes() - before < 2000 * 2000 / 5
