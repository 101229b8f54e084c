"""Every snippet of the documentation is true: found here, whatever page it stands on, and checked by its language.

A command of `lrft` is parsed by the command line itself and its recipe read with its overrides; a recipe or a part of
one is validated, laid over a base where it names no model; Python is compiled and its calls of `lrft` are bound to the
functions they name. A fence without a language, or of one that is not known here, is refused.
"""

from __future__ import annotations

import ast
import csv
import inspect
import json
import re
import shlex
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import typer
import yaml

import lrft
from lrft.cli import app
from lrft.lab.search.arms import Arms
from lrft.lab.search.settings import parse_method
from lrft.lab.search.space import read_space
from lrft.lab.sweep.points import points_of
from lrft.lab.tables import library
from lrft.lab.tables.exact.load import load_table
from lrft.lab.tables.full.table import load_full
from lrft.lab.tables.scaled.table import load_scaled
from lrft.recipe.load import load_recipe
from lrft.recipe.method_words import parse_named
from lrft.registry.axes import DATA_SELECTIONS, GENERATORS, TRANSFER_ESTIMATES

ROOT = Path(__file__).parents[1]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / ".github").rglob("*.md")),
]
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>[\w.+-]*)[^\n]*\n(?P<body>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL
)
LANGUAGES = {"bash", "console", "csv", "json", "jsonl", "python", "text", "yaml"}
# Commands whose arguments are recipes and overrides.
READ = {"train", "plan", "find-lr", "data", "recipes", "choose", "compare", "search"}
# What else of a command's parameters is looked at.
MORE = {
    "search": lambda given: parse_method(given["method"]),
    "data": lambda given: parse_data_method(given) if "method" in given else None,
    "generate-adapter": lambda given: parse_named(GENERATORS, given["method"]) if "method" in given else None,
}


def parse_data_method(given: dict[str, object]) -> object:
    """The method of `lrft data rank`, which has sources, or of `lrft data select`."""
    return parse_named(TRANSFER_ESTIMATES if given.get("source") else DATA_SELECTIONS, str(given["method"]))


@dataclass(frozen=True)
class Snippet:
    """One fenced block of a page."""

    page: str
    line: int
    language: str
    body: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def snippets_of(page: Path) -> list[Snippet]:
    text = page.read_text(encoding="utf-8")
    name = page.relative_to(ROOT).as_posix()
    return [
        Snippet(name, text.count("\n", 0, found.start()) + 1, found["language"], found["body"])
        for found in FENCE.finditer(text)
    ]


SNIPPETS = [snippet for page in PAGES for snippet in snippets_of(page)]


def of(*languages: str) -> pytest.MarkDecorator:
    found = [snippet for snippet in SNIPPETS if snippet.language in languages]
    return pytest.mark.parametrize("snippet", found, ids=str)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the files that the documentation names: the packaged rows, and the reader's own."""
    for name in ("mine", "a", "b"):
        (tmp_path / f"{name}.yaml").write_text(f"extends: {ROOT / 'recipes' / 'quickstart.yaml'}\n")
    (tmp_path / "tasks").mkdir()
    for name in (
        "name",
        "item",
        "count",
        "color",
        "city",
        "day",
    ):  # as scripts/make_small_tasks.py calls them
        (tmp_path / "tasks" / f"{name}.yaml").write_text((tmp_path / "mine.yaml").read_text())
    for run in (tmp_path / "runs" / name for name in ("first", "quickstart")):
        run.mkdir(parents=True)
        (run / "recipe.yaml").symlink_to(tmp_path / "mine.yaml")
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    (tmp_path / "data").symlink_to(ROOT / "recipes" / "data")
    for folder in ("my", "smoke"):
        (tmp_path / folder).mkdir()
    rows = [path for path in (ROOT / "docs" / "rows").iterdir() if path.suffix != ".yaml"]
    for path in rows:
        (tmp_path / path.name).symlink_to(path)
    for name in ("train.jsonl", "best.jsonl", "drawn.jsonl", "my/train.jsonl", "my/test.jsonl"):
        (tmp_path / name).symlink_to(ROOT / "docs" / "rows" / "chat.jsonl")
    (tmp_path / "my" / "cola.tsv").write_text("gj04\t1\t\tIt is here.\n")
    (tmp_path / "my" / "e2e.txt").write_text("name : A||A it is.\n")
    for name in ("boolq", "openbookqa", "arc", "openbookqa_test"):
        (tmp_path / "my" / f"{name}.json").symlink_to(ROOT / "docs" / "rows" / "instruction.jsonl")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_are_snippets_and_every_one_has_a_language_that_is_checked():
    assert len(SNIPPETS) > 100
    assert [str(snippet) for snippet in SNIPPETS if snippet.language not in LANGUAGES] == []


def test_every_fence_is_found():
    for page in PAGES:
        fences = re.findall(r"^ *```", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(fences) == 2 * len(snippets_of(page)), page


# Commands.


def lines_of(snippet: Snippet) -> list[str]:
    """The commands of a block; of a session those after `$`, the rest being output."""
    lines = snippet.body.replace("\\\n", " ").splitlines()
    if snippet.language == "console":
        lines = [line.strip()[2:] for line in lines if line.strip().startswith("$ ")]
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


@of("bash", "console")
def test_a_command_is_one_that_runs(snippet, here):
    commands = lines_of(snippet)
    assert commands
    for command in commands:
        check_command(shlex.split(command, comments=True))


def test_a_command_in_a_text_block_would_be_seen():
    hidden = [
        str(snippet)
        for snippet in SNIPPETS
        if snippet.language == "text"
        and re.search(r"^\$? ?(lrft|scripts/\w+|pip) ", snippet.body, re.MULTILINE)
    ]
    assert hidden == []


def check_command(words: list[str]) -> None:
    """Refuse what is not known: a new kind of command needs a line here."""
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    first, rest = words[0], words[1:]
    if first == "lrft":
        parse(rest)
    elif first == "torchrun":
        assert rest[rest.index("-m") + 1] == "lrft"
        parse(rest[rest.index("lrft") + 1 :])
    elif first == "pip":
        assert rest[0] == "install"
        extras = [
            extra
            for word in rest[1:]
            for found in re.findall(r"\[(.*)\]", word)
            for extra in found.split(",")
        ]
        assert set(extras) <= extra_names()
    elif first in ("python", "mkdocs", "pre-commit"):
        assert first != "python" or (ROOT / rest[0]).is_file()
    else:
        assert first.startswith("scripts/") and (ROOT / first).is_file(), words


@cache
def extra_names() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return set(project["optional-dependencies"])


def parse(words: list[str]) -> None:
    """The command line without running it: options, arguments, and the recipes among them."""
    command, name, context = typer.main.get_command(app), "lrft", None
    if words[:1] in (["--version"], ["--install-completion"]):
        return
    while hasattr(command, "resolve_command"):
        context = command.make_context(name, words, parent=context)
        name, command, words = command.resolve_command(context, [*context._protected_args, *context.args])
    top = context.info_name if context.parent is not None else name
    with command.make_context(name, list(words), parent=context) as parsed:
        given = [
            value
            for key in ("recipe", "arguments", "name", "a", "b")
            for value in listed(parsed.params.get(key))
        ]
        overrides = listed(parsed.params.get("overrides"))
        if parsed.params.get("resume"):  # of a run, whose own recipe is meant
            given = [f"{one}/recipe.yaml" if Path(one, "recipe.yaml").is_file() else one for one in given]
    MORE.get(top, len)(parsed.params)
    if top == "reproduce":
        for table in listed(parsed.params.get("names")):
            assert table == "ls" or table in library.packaged() or Path(table).name == "mine.yaml", table
    elif top == "methods":
        assert name == "ls" or any(given)
    elif top == "sweep":
        assert len(points_of(given[0], overrides, None, parsed.params["metric"])) > 1
    elif top in READ:
        recipes = [one for one in given if "=" not in one and not one.startswith("~")]
        overrides += [one for one in given if one not in recipes]
        for recipe in recipes:
            load_recipe(recipe, overrides)


def listed(value: object) -> list[str]:
    """An argument's values as a list; empty where it was not given."""
    if value is None:
        return []
    return [str(one) for one in value] if isinstance(value, list | tuple) else [str(value)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_command_named_in_a_sentence_is_there(page):
    command = typer.main.get_command(app)
    for words in re.findall(r"`lrft ([a-z][^`]*)`", page.read_text(encoding="utf-8")):
        first, *rest = words.split()
        first = first.rstrip(",")
        assert first in command.commands, words
        below = getattr(command.commands[first], "commands", None)
        if below is not None and rest and re.fullmatch(r"[a-z]+", rest[0]):
            assert rest[0] in below, words


# Recipes.


@of("yaml")
def test_a_recipe_or_a_part_of_one_is_valid(snippet, here):
    written = yaml.safe_load(snippet.body)
    assert isinstance(written, dict)
    if any("." in key for key in written):  # a space of `lrft search`
        path = here / "space.yaml"
        path.write_text(snippet.body)
        Arms("quickstart", (), read_space(path), "eval_loss").check()
        return
    # The pages of methods quote recipes of a folder beside the data.
    path = here / ("smoke" if snippet.page.startswith("docs/methods/") else "") / "snippet.yaml"
    if "tier" in written:
        path.write_text(snippet.body)
        check_table(path)
        return
    whole = "data" in written and "name" in written.get("model", {})
    named = "" if whole or "extends" in written else f"extends: {base_of(snippet)}\n"
    path.write_text(named + snippet.body)
    load_recipe(path)


def check_table(path: Path) -> None:
    entry = library.find(str(path))
    if entry.tier == library.EXACT:
        load_table(entry)
    else:
        {library.SCALED: load_scaled, library.FULL: load_full}[entry.tier](path)


def base_of(snippet: Snippet) -> Path:
    """What a part is laid over: what the pages of methods say, elsewhere the quickstart."""
    name = "smoke/_base.yaml" if snippet.page.startswith("docs/methods/") else "quickstart.yaml"
    return ROOT / "recipes" / name


# Python and data.


@of("python")
def test_python_compiles_and_calls_lrft_as_it_can_be_called(snippet):
    body = inspect.cleandoc(snippet.body)
    for node in ast.walk(ast.parse(body)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lrft"):
            module = __import__(node.module, fromlist=[alias.name for alias in node.names])
            assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("lrft."):
            arguments = [ast.literal_eval(one) if isinstance(one, ast.Constant) else one for one in node.args]
            keywords = {word.arg: word.value for word in node.keywords}
            function = getattr(lrft, ast.unparse(node.func).removeprefix("lrft."))
            inspect.signature(function).bind(*arguments, **keywords)


@of("json", "jsonl", "csv")
def test_rows_and_documents_can_be_read(snippet):
    if snippet.language == "csv":
        first, *rows = csv.reader(snippet.body.splitlines())
        assert rows and all(len(row) == len(first) for row in rows)
        return
    lines = [snippet.body] if snippet.body.startswith("{\n") else snippet.body.splitlines()
    assert all(isinstance(json.loads(line), dict) for line in lines)
