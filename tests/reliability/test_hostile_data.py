"""Rows and folders that are far beyond anything meant: one sentence, in bounded time and memory."""

import json
import pickle
import resource
import time

import pytest

from lrft.data.formats.chat import Chat
from lrft.data.formats.prompt_completion import PromptCompletion
from lrft.data.gate_report import GateReport
from lrft.data.json_rows import read_json, read_json_lines
from lrft.data.row_size import check_size
from lrft.data.sources import read_rows
from lrft.data.text_files import TEXT_READERS
from lrft.files.model_folder import LARGEST_TOKENIZER
from lrft.files.tensors import MOST as LARGEST_HEADER
from lrft.model.load import load_config
from lrft.model.tokenizer import load_tokenizer
from lrft.recipe.sections import ModelSection
from lrft.registry.config import Source
from lrft.registry.errors import DataError, LrftError, RecipeError, UsageError
from lrft.registry.peft_pattern import value_at
from tests.reliability.hostile_folders import FOLDERS, Payload

ROW = '{"prompt": "a", "completion": "b"}\n'
MIB = 2**20


@pytest.fixture
def bounded():
    """What happens meanwhile takes few seconds of the processor, and little memory."""
    began, before = time.thread_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert time.thread_time() - began < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 * 2**10  # KiB


NUMBERS = {
    "Infinity": "Infinity is not JSON",
    "-Infinity": "-Infinity is not JSON",
    "NaN": "NaN is not JSON",
    "1e400": "1e400 is too large for a number; write it as a text",
    "[[-1e999]]": "-1e999 is too large",
    "9" * 100_000: "a number of more than 4,300 digits; write it as a text",
    "[" * 100_000 + "]" * 100_000: "nested too deeply",
    '{"a": 1, "a": 2}': "the key 'a' stands twice",
}


@pytest.mark.parametrize("value", NUMBERS, ids=lambda value: value[:20])
@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_a_value_that_is_none_is_refused_with_its_line(tmp_path, bounded, value, kind):
    bad = '{"prompt": "a", "completion": "b", "x": VALUE}\n'.replace("VALUE", value)
    path = tmp_path / f"rows.{kind}"
    path.write_text(ROW + bad if kind == "jsonl" else f"[{ROW},{bad}]")
    with pytest.raises(DataError) as refused:
        (read_json_lines if kind == "jsonl" else read_json)(path)
    assert f"{path}:2: {NUMBERS[value]}" in str(refused.value) and len(str(refused.value)) < 300


def test_a_gap_in_a_parquet_column_of_numbers_is_null(tmp_path):
    """As pandas writes it; a format that reads the column refuses the null."""
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"prompt": ["a", "b"], "x": [1.0, float("nan")]}), tmp_path / "rows.parquet")
    rows = read_rows(Source(source=str(tmp_path / "rows.parquet")), "train")
    assert [row["x"] for row in rows] == [1.0, None] == [rows[0]["x"], rows[1]["x"]]


@pytest.mark.parametrize(
    "values", [[1.0, float("inf")], [[1.0], [float("nan")]], [{"a": 0.5}, {"a": float("-inf")}]]
)
def test_a_number_that_is_none_is_refused_in_parquet(tmp_path, values):
    import pyarrow as pa
    from pyarrow import parquet

    path = tmp_path / "rows.parquet"
    parquet.write_table(pa.table({"prompt": ["a", "b"], "x": values}), path)
    rows = read_rows(Source(source=str(path)), "train")
    assert rows[0]["prompt"] == "a"
    for use in (lambda: rows[1], lambda: list(rows)):
        with pytest.raises(
            DataError, match=r"rows.parquet row 1: column 'x' holds (nan|-?inf), which is no number"
        ):
            use()


def test_rows_of_whole_numbers_and_texts_are_not_looked_through(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    path = tmp_path / "rows.parquet"
    parquet.write_table(pa.table({"prompt": ["a"], "x": [1]}), path)
    assert type(read_rows(Source(source=str(path)), "train").rows).__name__ == "Dataset"


def packed(path, block, times):
    import pyarrow as pa

    with pa.CompressedOutputStream(str(path), "gzip" if path.suffix == ".gz" else "zstd") as file:
        for _ in range(times):
            file.write(block)
    return path


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize(
    ("block", "said"), [(b"\n", "more than 1,000,000 blank lines"), (b"a", "more than 200 times")]
)
def test_a_bomb_is_not_unpacked_to_its_end(tmp_path, bounded, suffix, block, said):
    kind = ".jsonl" if block == b"\n" else ".txt"
    path = packed(tmp_path / f"rows{kind}{suffix}", block * MIB, 80)
    with pytest.raises(DataError, match=said) as refused:
        TEXT_READERS[f"{kind}{suffix}"](path, None)
    assert str(refused.value).startswith(str(path))


def test_blank_lines_of_a_large_file_are_counted_too(tmp_path, bounded):
    path = tmp_path / "rows.jsonl"
    path.write_text(ROW + "\n" * 70_000_000)
    with pytest.raises(DataError, match=r"rows.jsonl:1000002: more than 1,000,000 blank lines"):
        read_json_lines(path)


def test_a_file_that_packs_well_is_no_bomb(tmp_path):
    path = packed(tmp_path / "rows.jsonl.gz", ROW.encode(), 10_000)
    assert len(read_json_lines(path)[0]) == 10_000


def test_a_hundred_thousand_columns_are_read_in_bounded_time(tmp_path, bounded):
    many = {f"c{index}": 1 for index in range(100_000)}
    line = json.dumps({"prompt": "a", "completion": "b", **many})
    (tmp_path / "rows.jsonl").write_text(line + "\n")
    (row,), _ = read_json_lines(tmp_path / "rows.jsonl")
    assert len(row) == 100_002
    (tmp_path / "twice.jsonl").write_text(line[:-1] + ', "c5": 1}\n')
    with pytest.raises(DataError, match="'c5' stands twice"):
        read_json_lines(tmp_path / "twice.jsonl")
    (tmp_path / "rows.csv").write_text(",".join([*many, "c7"]) + "\n1\n")
    with pytest.raises(DataError, match="'c7' twice"):
        TEXT_READERS[".csv"](tmp_path / "rows.csv", None)


def test_a_row_of_ten_megabytes_and_a_talk_of_ten_thousand_turns_are_refused(bounded):
    rows = PromptCompletion(PromptCompletion.Config(method="prompt_completion"))
    huge = rows.example({"prompt": "a" * 10_000_000, "completion": "b"})
    with pytest.raises(DataError, match="the row has 10,000,001 characters; at most 5,000,000"):
        check_size(huge)
    check_size(huge, windows=True)
    talk = [{"role": ("user", "assistant")[turn % 2], "content": "hello"} for turn in range(10_000)]
    chat = Chat(Chat.Config(method="chat"))
    with pytest.raises(DataError, match="10,000 messages; at most 1,000 are learnt from in one row"):
        check_size(chat.example({"messages": talk}))


def test_no_message_advises_to_train_at_a_length_of_millions():
    held = dict.fromkeys(GateReport.__dataclass_fields__, 0) | {
        "first": {"too_long": ("a:1",)},
        "unwritten": {},
    }
    for longest, said in ((3_000_000, "correct or remove the longest"), (1000, "set train.max_length: 1024")):
        report = GateReport(
            **held | {"too_long": 1, "supervised": 1, "suggested_max_length": -(-longest // 64) * 64}
        )
        with pytest.raises(DataError) as refused:
            report.check(True, "error")
        assert said in str(refused.value) and "3,000,000" not in str(refused.value)


CATASTROPHIC = (
    "(a+)+$",
    "(a|a)*b",
    "(a|aa)+$",
    "(.*)*x",
    "a?" * 30 + "a" * 30,
    "(.*a){20}",
    ".*.*.*.*x",
    "(?=a+)+b",
)


@pytest.mark.parametrize("pattern", CATASTROPHIC)
def test_a_pattern_that_could_take_for_ever_is_refused(bounded, pattern):
    for site in ("a" * 40, "a" * 40 + ".b", "model." + "a" * 200):
        with pytest.raises(UsageError, match="could take very long to match"):
            value_at({pattern: 8}, site, 4)


@pytest.mark.parametrize(
    ("pattern", "value"),
    [
        ("q_proj", 8),
        (r".*\.q_proj", 8),
        (r"model\.layers\.\d+\.self_attn\.(q|k)_proj", 8),
        ("self_attn.q_proj", 8),
        ("^model.*q_proj", 8),
        ("proj", 4),
        ("layers.1", 4),
        ("^self_attn.q_proj", 4),
    ],
)
def test_an_ordinary_pattern_is_matched_as_peft_matches_it(pattern, value):
    import re

    site = "model.layers.11.self_attn.q_proj"
    assert value_at({pattern: 8}, site, 4) == value
    assert bool(re.match(rf"(.*\.)?({pattern})$", site)) == (value == 8)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "adapter_model.bin"])
def test_a_pickle_is_refused_and_never_loaded(tiny, tmp_path, monkeypatch, name):
    from lrft.build.earlier_peft import read_peft
    from lrft.model.load import load_model

    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "base"
    folder.mkdir()
    for file in tiny().iterdir():
        if file.suffix == ".json":
            (folder / file.name).write_bytes(file.read_bytes())
    (folder / name).write_bytes(pickle.dumps({"a": Payload()}))
    with pytest.raises(RecipeError, match="safetensors"):
        load_model(ModelSection(name=str(folder)))
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(RecipeError, match=r"no adapter_model.safetensors; save the adapter with safetensors"):
        read_peft(folder, {}, "lora")
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_hostile_model_folder_is_refused_by_name(tiny, tmp_path, bounded, kind):
    folder = tmp_path / "base"
    folder.mkdir()
    for file in tiny().iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    FOLDERS[kind](folder)
    section = ModelSection(name=str(folder))
    with pytest.raises(LrftError) as refused:
        load_config(section)
        load_tokenizer(section)
    assert str(folder) in str(refused.value) and "\n" not in str(refused.value)
    assert len(str(refused.value)) < 700


def test_the_bounds_are_above_what_is_published():
    assert LARGEST_TOKENIZER > 5 * 40 * MIB and LARGEST_HEADER > 5 * MIB
