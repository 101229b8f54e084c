from __future__ import annotations

import gzip
import hashlib
import os
import subprocess
import sys

import pytest

from lrft.data.sources import read_rows
from lrft.registry.config import Source
from lrft.registry.errors import DataError

ROWS = [{"prompt": "a", "completion": "b"}, {"prompt": "ä\u2028", "completion": "2020-01-01"}]


def read(path, role="train", **settings):
    return read_rows(Source(source=str(path), **settings), role)


FIRST, SECOND = '{"prompt": "a", "completion": "b"}', '{"prompt": "ä\u2028", "completion": "2020-01-01"}'
GOOD = {
    "lines.jsonl": f"{FIRST}\n\n{SECOND}\n",
    "crlf.jsonl": f"{FIRST}\r\n{SECOND}",
    "bom.jsonl": f"\ufeff{FIRST}\n{SECOND}",
    "list.json": f"[{FIRST},\n {SECOND}]\n",
    "data.json": f'{{"version": [1, {{"a": 2}}],\n"data": [{FIRST},\n{SECOND}], "more": 1}}',
    "lines.json": f"{FIRST}\n{SECOND}\n",
    "table.csv": 'prompt,completion\na,b\n"ä\u2028",2020-01-01\n',
    "table.tsv": "prompt\tcompletion\na\tb\nä\u2028\t2020-01-01\n",
}
LINES = {
    "lines.jsonl": (1, 3),
    "list.json": (1, 2),
    "data.json": (2, 3),
    "lines.json": (1, 2),
    "table.csv": (2, 3),
}


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("zipped", [False, True])
def test_every_kind_of_text_file_gives_the_rows_as_written(tmp_path, name, zipped):
    content = GOOD[name].encode()
    file = tmp_path / (f"{name}.gz" if zipped else name)
    file.write_bytes(gzip.compress(content) if zipped else content)
    rows = read(file)
    assert list(rows) == ROWS and len(rows) == 2 and rows[1] == ROWS[1]
    assert rows.fingerprint == hashlib.sha256(file.read_bytes()).hexdigest()
    assert rows.origin == str(file)


@pytest.mark.parametrize(("name", "lines"), LINES.items())
def test_rows_know_their_line(tmp_path, name, lines):
    (tmp_path / name).write_text(GOOD[name])
    rows = read(tmp_path / name)
    assert [rows.where(index) for index in range(2)] == [f"{tmp_path / name}:{line}" for line in lines]


def test_parquet_rows_are_read_and_named_by_number(tmp_path):
    from datasets import Dataset

    Dataset.from_list(
        [{"messages": [{"role": "user", "content": "x"}], "n": i} for i in range(5)]
    ).to_parquet(tmp_path / "rows.parquet")
    rows = read(tmp_path / "rows.parquet", limit=3)
    assert len(rows) == 3 and rows[2] == {"messages": [{"role": "user", "content": "x"}], "n": 2}
    assert rows.where(2) == f"{tmp_path / 'rows.parquet'} row 2"


def test_a_null_inside_a_parquet_row_is_a_key_that_the_row_does_not_have(tmp_path):
    from datasets import Dataset

    calls = [[{"name": "a", "arguments": {"x": "1"}}], [{"name": "b", "arguments": {"y": "2"}}]]
    rows = [{"messages": [{"role": "assistant", "tool_calls": made}], "note": None} for made in calls]
    Dataset.from_list([*rows, {"messages": [], "note": "x"}]).to_parquet(tmp_path / "rows.parquet")
    found = read(tmp_path / "rows.parquet")
    assert list(found)[:2] == [found[0], found[1]] == rows
    file = tmp_path / "rows.jsonl"
    file.write_text('{"messages": [{"arguments": {"x": null}}]}\n')
    assert read(file)[0] == {"messages": [{"arguments": {"x": None}}]}, "what is written is kept"


def test_a_changed_parquet_file_is_read_anew(tmp_path):
    from datasets import Dataset

    for text in ("old", "new"):
        Dataset.from_list([{"text": text}]).to_parquet(tmp_path / "rows.parquet")
        os.utime(tmp_path / "rows.parquet", (0, 0))
        assert read(tmp_path / "rows.parquet")[0] == {"text": text}


def test_table_values_stay_text(tmp_path):
    (tmp_path / "t.csv").write_text('a,b,c,d\n007,NA,,"x, ""y""\nz"\n3.10,None,null,1e5\n')
    rows = read(tmp_path / "t.csv")
    assert rows[0] == {"a": "007", "b": "NA", "c": "", "d": 'x, "y"\nz'}
    assert rows[1] == {"a": "3.10", "b": "None", "c": "null", "d": "1e5"}
    assert rows.where(1) == f"{tmp_path / 't.csv'}:4"


def test_quotes_in_tsv_are_ordinary(tmp_path):
    (tmp_path / "t.tsv").write_text('sentence\tlabel\nthe "best\t1\nend\t0\n')
    assert [row["sentence"] for row in read(tmp_path / "t.tsv")] == ['the "best', "end"]


def test_a_limit_takes_the_first_rows_and_reads_no_further(tmp_path):
    (tmp_path / "r.jsonl").write_text('{"a": "1"}\n{"a": "2"}\nbroken\n')
    assert [row["a"] for row in read(tmp_path / "r.jsonl", limit=2)] == ["1", "2"]


def test_a_folder_gives_the_split_of_the_role(tmp_path):
    for name in ("train", "validation", "test", "extra"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"a": "{name}"}}\n')
    assert read(tmp_path)[0] == {"a": "train"}
    assert read(tmp_path, "eval")[0] == {"a": "validation"}
    assert read(tmp_path, "eval", split="extra")[0] == {"a": "extra"}
    (tmp_path / "train.csv").write_text("a\n1\n")
    with pytest.raises(DataError, match=r"holds train\.csv, train\.jsonl; name the file"):
        read(tmp_path)
    with pytest.raises(DataError, match=r"no file called nope; it has extra\.jsonl"):
        read(tmp_path, split="nope")


# file name -> (content, line, part of the message)
BROKEN = {
    "utf8.jsonl": (b'{"a": "x"}\n{"a": "\xff"}\n', 2, "not UTF-8 (byte 0xff at column 8)"),
    "utf16.jsonl": ('{"a": "x"}\n'.encode("utf-16"), 1, "but UTF-16; save the file"),
    "truncated.jsonl": (b'{"a": "x"}\n{"a": "y', 2, "not valid JSON (Unterminated string"),
    "cut_object.jsonl": (b'{"a": "x"}\n\n{"a": "y"', 3, "not valid JSON"),
    "string.jsonl": (b'{"a": "x"}\n"y"\n', 2, "this is a string"),
    "number.jsonl": (b'{"a": "x"}\n3\n', 2, "this is a number"),
    "list.jsonl": (b'{"a": "x"}\n["y"]\n', 2, "this is a list"),
    "null.jsonl": (b'{"a": "x"}\nnull\n', 2, "this is null"),
    "bool.jsonl": (b"true\n", 1, "this is a boolean"),
    "no_columns.jsonl": (b'{"a": "x"}\n{}\n', 2, "no columns"),
    "empty.jsonl": (b"", 1, "no rows"),
    "blank.jsonl": (b"\n \n\n", 1, "no rows"),
    "comma.jsonl": (b'{"a": "x"},\n{"a": "y"}\n', 1, "Extra data"),
    "two.jsonl": (b'{"a": "x"} {"a": "y"}\n', 1, "Extra data"),
    "pretty.jsonl": (b'{\n"a": "x"\n}\n', 1, "a file that is one JSON value is called .json"),
    "single_quotes.jsonl": (b"{'a': 'x'}\n", 1, "double quotes"),
    "nan.jsonl": (b'{"a": "x"}\n{"a": NaN}\n', 2, "NaN is not JSON"),
    "control.jsonl": (b'{"a": "x\ty"}\n', 1, "Invalid control character"),
    "nul.jsonl": (b'{"a": "x\x00"}\n', 1, "Invalid control character"),
    "twice.jsonl": (b'{"a": "x", "a": "y"}\n', 1, "the key 'a' stands twice"),
    "surrogate.jsonl": (b'{"a": "x"}\n{"a": "\\ud83d"}\n', 2, "half a character"),
    "in_list.jsonl": (b'{"a": [["\\udc00"]]}\n', 1, "half a character"),
    "deep.jsonl": (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}\n", 1, "nested too deeply"),
    "html.jsonl": (b"<!DOCTYPE html>\n<html>", 1, "not valid JSON"),
    "lfs.jsonl": (b"version https://git-lfs.github.com/spec/v1\noid", 1, "not valid JSON"),
    "empty.json": (b"", 1, "the file is empty"),
    "no_rows.json": (b"[]", 1, "no rows"),
    "text.json": (b'"x"', 1, "holds a list of objects"),
    "object.json": (b'{"a": "x"}', 1, "one object with 'a'"),
    "data_object.json": (b'{"data": {"a": "x"}}', 1, "one object with 'data'"),
    "open_list.json": (b'[\n{"a": "x"},\n{"a": "y"}\n', 4, "not valid JSON"),
    "list_comma.json": (b'[\n{"a": "x"},\n]', 2, "not valid JSON"),
    "missing_comma.json": (b'[{"a": "x"}\n{"a": "y"}]', 2, "expected a comma"),
    "after_list.json": (b'[{"a": "x"}]\n]', 1, "something follows"),
    "mixed.json": (b'[{"a": "x"},\n\n 3]', 3, "this is a number"),
    "inner.json": (b'[{"a": "x"},\n{"a": y}]', 2, "not valid JSON (Expecting value"),
    "inner_twice.json": (b'[{"a": "x"},\n{"a": 1, "a": 2}]', 2, "stands twice"),
    "inner_lines.json": (b'{"a": "x"}\n{"a": \n', 2, "not valid JSON"),
    "utf8.json": (b'[{"a": "x"},\n{"a": "\xe9"}]', 2, "not UTF-8"),
    "long.csv": (b"a,b\n1,2\n1,2,3\n", 3, "3 fields where the header has 2"),
    "short.csv": (b'a,b\n"1\n1",2\n1\n', 4, "1 fields where the header has 2"),
    "quote.csv": (b'a,b\n1,"x\n2,y\n', 2, "not a valid table"),
    "utf8.csv": (b"a,b\n1,\xff\n", 2, "not UTF-8"),
    "header.csv": (b"a,a\n1,2\n", 1, "the column 'a' twice"),
    "unnamed.csv": (b",a\n1,2\n", 1, "a column without a name"),
    "header_only.csv": (b"a,b\n", 1, "no rows"),
    "empty.tsv": (b"", 1, "no rows"),
    "fields.tsv": (b"a\tb\n1 2\n", 2, "1 fields where the header has 2"),
    "not_gzip.jsonl.gz": (b'{"a": "x"}\n', 1, "gzip data is damaged"),
    "cut.jsonl.gz": (gzip.compress(b'{"a": "x"}\n' * 9)[:-12], 2, "gzip data is damaged"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_malformed_file_is_one_line_with_file_and_line(tmp_path, name):
    content, line, part = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as raised:
        read(tmp_path / name)
    message = str(raised.value)
    assert message.startswith(f"{tmp_path / name}:{line}: "), message
    assert part in message
    assert "\n" not in message and len(message) < len(str(tmp_path)) + 250
    assert raised.value.exit_code == 3


def test_a_ten_megabyte_line_gives_a_short_message(tmp_path):
    (tmp_path / "r.jsonl").write_text('{"a": "' + "x" * 10_000_000)
    with pytest.raises(DataError) as raised:
        read(tmp_path / "r.jsonl")
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize("content", [b"", b"PAR1 not really PAR1"])
def test_a_damaged_parquet_file_is_one_line(tmp_path, content):
    (tmp_path / "r.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"^\S+r\.parquet: no readable parquet file\. .+\.$") as raised:
        read(tmp_path / "r.parquet")
    assert "\n" not in str(raised.value)


def test_a_parquet_file_without_rows_is_refused(tmp_path):
    from datasets import Dataset

    Dataset.from_dict({"a": []}).to_parquet(tmp_path / "r.parquet")
    with pytest.raises(DataError, match="no rows"):
        read(tmp_path / "r.parquet")


def test_a_missing_file_suggests_near_names(tmp_path):
    (tmp_path / "train.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"data\.train\.source: no file .*did you mean train\.jsonl\?"):
        read(tmp_path / "trian.jsonl")
    with pytest.raises(DataError, match=r"folder .* does not exist"):
        read(tmp_path / "no" / "train.jsonl")


def test_an_unknown_kind_of_file_lists_the_known_ones(tmp_path):
    (tmp_path / "rows.xlsx").write_text("")
    with pytest.raises(DataError, match=r"data\.eval\.source: .*rows\.xlsx .*\.jsonl.*\.parquet"):
        read(tmp_path / "rows.xlsx", "eval")


@pytest.mark.parametrize("key", ["split", "name", "revision"])
def test_keys_of_the_hub_are_refused_for_a_file(tmp_path, key):
    (tmp_path / "r.jsonl").write_text('{"a": "x"}\n')
    with pytest.raises(DataError, match=rf"data\.train\.{key}: "):
        read(tmp_path / "r.jsonl", **{key: "x"})


def test_the_hub_out_of_reach_is_one_sentence_with_the_id_and_the_remedy(tmp_path):
    code = (
        "from lrft.registry.config import Source\nfrom lrft.registry.errors import DataError\n"
        "from lrft.data.sources import read_rows\n"
        "try: read_rows(Source(source='openai/gsm8k', name='main'), 'eval')\n"
        "except DataError as error: print(error)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("data.eval.source: no file 'openai/gsm8k', and the hub")
    assert "(split 'test')" in lines[0] and "HF_HOME" in lines[0]
