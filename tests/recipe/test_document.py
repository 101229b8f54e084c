"""Reading YAML: which scalars are numbers, where lines are, and what no file may do."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from lrft.recipe.document import MAX_BYTES, parse
from lrft.recipe.load import load_recipe
from lrft.recipe.tree import Place
from tests.recipe.valid_recipe import VALID, problems_of


def value(text: str):
    return parse(text, Place("text", 1))[0].plain()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2e-4", 2e-4),
        ("1e4", 1e4),
        ("-.5", -0.5),
        ("1.", 1.0),
        ("1", 1),
        ("010", 10),
        ("0o10", 8),
        ("0xff", 255),
        ("+7", 7),
        (".inf", float("inf")),
        ("-.INF", float("-inf")),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("y", "y"),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("2024-01-01", "2024-01-01"),
        ("0b11", "0b11"),
        ("1e", "1e"),
        ("=", "="),
        ("'1'", "1"),
        ("!!str 1", "1"),
        ("!!float 1", 1.0),
        ("[1, a]", [1, "a"]),
        ("\ufeff1", 1),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, expected):
    found = value(text)
    assert found == expected and type(found) is type(expected)


def test_not_a_number_is_a_float():
    assert value(".nan") != value(".nan")


def test_a_value_knows_the_line_of_its_key():
    root, _ = parse("a:\n\n  b:\n    1\n  c: [x,\n    y]\n", Place("f.yaml", 1))
    assert str(root.get("a", "b").place) == "f.yaml:3"
    assert str(root.get("a", "c", 1).place) == "f.yaml:6"


def test_an_alias_stands_for_its_value(write):
    path = write(VALID.replace("batch_size: 2", "batch_size: &n 3\n  gradient_accumulation: *n"))
    assert load_recipe(path).recipe.train.gradient_accumulation == 3


DEEP = "a: " + "[" * 500 + "]" * 500
BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdef", "bcdefg", strict=True)
)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"# only a comment\n", "is empty"),
        (b"---\n", "is empty"),
        (b"- model\n- data\n", "a mapping of sections"),
        (b"just text", "holds 'just text'"),
        (b"5", "holds 5"),
        (b"!!python/object/apply:os.system ['true']", "is not allowed"),
        (b"model: \xff\xfe", "not UTF-8"),
        (b"\xff\xfem\x00o\x00", "not UTF-8"),
        (b"model:\n  name: a\x00b", "not allowed in YAML"),
        (b"\x7fELF\x02\x01\x01" + bytes(range(128)), "not allowed in YAML"),
        (bytes(range(256)), "not UTF-8"),
        (b"\x1b[31mred", "not allowed in YAML"),
        (DEEP.encode(), "levels deep"),
        (b"{a: " * 50 + b"}" * 50, "levels deep"),
        (BOMB.encode(), "aliases counted"),
        (b"a: &a [*a]", "levels deep"),
        (b"a: &a {b: *a}", "levels deep"),
        (b"- x\n" * 20_000, "more than 10000 values"),
        (b"x" * (MAX_BYTES + 1), "larger than 1 MB"),
        (b"#" * 10_000_000, "larger than 1 MB"),
        (b'a: "\\ud800"', "half of a character pair"),
        (b'a: "\\U7fffffff"', "not valid YAML"),
        (b'a: "\\q"', "not valid YAML"),
        (b"%YAML 9.9\n---\na: b", "not valid YAML"),
        (b"a: b: c", "second colon"),
        (b"a: 'b", "quote is not closed"),
        (b"a: [b", "not closed"),
    ],
)
def test_no_bytes_end_in_anything_but_a_sentence(folder, data, words):
    path = folder / "recipe.yaml"
    path.write_bytes(data)
    begun = time.process_time()
    problems = problems_of(path)
    assert time.process_time() - begun < 2
    assert any(words in problem.message for problem in problems)
    assert all("\n" not in str(problem) and problem.file == str(path) for problem in problems)


def test_ten_thousand_unknown_keys_take_under_two_seconds(folder):
    path = folder / "recipe.yaml"
    path.write_text("".join(f"key{n}: 1\n" for n in range(4_900)))
    begun = time.process_time()
    assert len(problems_of(path)) == 4_902
    assert time.process_time() - begun < 2


@pytest.mark.parametrize(
    "name", ["", ".", "/", "no/such/file.yaml", "x" * 5_000, "a\0b", "/dev/null", "\ud800"]
)
def test_no_name_ends_in_anything_but_a_sentence(name):
    (problem,) = problems_of(name)
    assert problem.message and "\n" not in str(problem)


def test_a_folder_is_refused_with_the_recipe_in_it(folder):
    (problem,) = problems_of(folder)
    assert "is a folder" in problem.message
    (folder / "recipe.yaml").write_text(VALID)
    (problem,) = problems_of(folder)
    assert f"give {folder / 'recipe.yaml'}" in problem.message


def test_a_pipe_is_refused_without_waiting_for_it(folder):
    os.mkfifo(folder / "pipe.yaml")
    (problem,) = problems_of(folder / "pipe.yaml")
    assert "not a regular file" in problem.message


def test_an_unreadable_file_is_a_sentence(write, monkeypatch):
    path = write(VALID)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    (problem,) = problems_of(path)
    assert problem.message == "cannot be read: Permission denied"


def test_a_tag_never_makes_an_object(folder, monkeypatch):
    monkeypatch.chdir(folder)
    _, problems = parse("a: !!python/object/apply:os.mkdir [made]", Place("text", 1))
    assert [p.key for p in problems] == ["a"]
    assert not (folder / "made").exists()
