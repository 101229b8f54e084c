"""Run folders to report on, and a page taken apart by Python's own parser."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lrft.api.asking.evaluate import evaluate
from lrft.lab.spectra.inspect import inspect
from lrft.lab.spectra.measure import Look
from tests.older_run import as_older

VOID = {"meta", "br", "hr", "img", "input", "link", "base", "col", "source", "wbr", "area", "embed", "track"}


class Parsed(HTMLParser):
    """A page: every element with its attributes, its text, and whether what is opened is closed in order.

    Attributes:
        elements: (tag, attributes) in the order of the page.
        said: text outside of style and script.
        wrong: what is not well-formed.
    """

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.parts: list[str] = []
        self.feed(page)
        self.close()
        self.wrong += [f"never closed: {tag}" for tag in self.open]

    @property
    def said(self) -> str:
        return "\n".join(self.parts)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if len({name for name, _ in attrs}) != len(attrs):
            self.wrong.append(f"{tag} has an attribute twice")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"{tag} closes something else in line {self.getpos()[0]}")

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.parts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="session")
def parse() -> Callable[[str], Parsed]:
    return Parsed


@pytest.fixture(scope="session")
def looked_at(trained_once, tmp_path_factory) -> Path:
    """A run that was evaluated before and after, and inspected; to be read, and changed in a copy."""
    run = trained_once("lora", "train.eval_every=1", "quantization=nf4_reference")
    folder = Path(shutil.copytree(run, tmp_path_factory.mktemp("looked_at") / run.name))
    evaluate(folder, ["loss", "exact_match"], limit=2, baseline=True)
    inspect(folder, Look(top=3))
    return folder


@pytest.fixture
def copied(tmp_path) -> Callable[..., Path]:
    """`copied(run, "name")` -> a copy without its checkpoints and without sums, to be changed."""

    def copy(run: Path, name: str = "copy") -> Path:
        return as_older(
            Path(shutil.copytree(run, tmp_path / name, ignore=shutil.ignore_patterns("checkpoints")))
        )

    return copy


@pytest.fixture(scope="session")
def edit() -> Callable[..., None]:
    """`edit(file, key=value)` changes a JSON file."""

    def change(file: Path, **keys: object) -> None:
        file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))

    return change
