"""Numbers on the command line are bounded as those of a recipe are, and what they make of tensors is never infinite."""

from __future__ import annotations

import re
import shutil
from contextlib import chdir
from pathlib import Path

import pytest
import torch
import typer.main
from safetensors.torch import load

import lrft
from lrft.api.asking.posterior import fit_posterior
from lrft.cli import app
from lrft.commands.bounds import Bounded
from lrft.model.finite_file import finite_file
from lrft.registry.errors import NumericalError
from tests.reliability.damaged_inputs import Prepared
from tests.reliability.full_disk import Bench, call

HUGE = str(10**30)
AT_ONCE = [
    ("combine", "a", "b", "--method", "ties", "--out", "out", "--error", "1e308"),
    ("combine", "a", "b", "--method", "ties", "--out", "out", "--weights", "nan,1"),
    ("combine", "a", "b", "--method", "ties", "--out", "out", "--weights", "1,1e39"),
    ("delta", "compress", "a", "--out", "out", "--rows", HUGE),
    ("delta", "compress", "a", "--out", "out", "--bits", f"8:{HUGE}"),
    ("delta", "apply", "a", "b", "--out", "out", "--weight", "inf"),
    ("generate-adapter", "draw", "a", "b", "--out", "out", "--seed", HUGE),
    ("data", "rank", "a", "--method", "textemb", "--source", "b", "--out", "o.json", "--seed", HUGE),
    ("choose", "a", "--out", "out", "--seed", HUGE),
    ("choose", "a", "--out", "out", "--price", "1e308,1"),
    ("generate", "a", "b", "--out", "o.jsonl", "--temperature", "5e-324"),
    ("posterior", "a", "--temperature", "1,1e-308"),
    ("data", "augment", "a", "--prompt", "b", "--out", "o.jsonl", "--top-p", "nan"),
]


@pytest.fixture(scope="module")
def prepared(bench: Bench) -> Prepared:
    return Prepared(bench)


@pytest.mark.parametrize("words", AT_ONCE, ids=lambda words: f"{words[0]} {words[-2]} {words[-1]}")
def test_a_number_that_nothing_can_mean_is_refused_by_its_option_before_anything_is_read(words, tmp_path):
    ended = call(tmp_path, words)
    (said,) = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert ended.code == 2 and not ended.raised and words[-2] in said, ended
    assert any(text in said for text in ("1e+30", "1,000,000,000,000", "as 3,0.5", "as 0.5,0.5")), said
    assert list(tmp_path.iterdir()) == []


def test_every_command_checks_its_options():
    def leaves(group):
        for command in group.commands.values():
            yield from leaves(command) if hasattr(command, "commands") else [command]

    assert {type(command) for command in leaves(typer.main.get_command(app))} == {Bounded}


def test_a_posterior_that_is_no_number_is_not_written_and_the_one_before_stays(prepared):
    place = prepared.place(("choice",), prepared.bench.folder)
    before = {path.name: path.read_bytes() for path in (place / "choice/posterior").iterdir()}
    with pytest.raises(NumericalError, match="temperatures nearer to 1"), chdir(place):
        fit_posterior("choice", temperatures=(1.0, 1e-308))
    assert {path.name: path.read_bytes() for path in (place / "choice/posterior").iterdir()} == before
    shutil.rmtree(place)


@pytest.mark.parametrize("weights", ["1e30,1e30", "1e22,1"])
def test_a_combination_that_is_no_number_is_not_written(prepared, weights):
    place = prepared.place(("run",), prepared.bench.folder)
    words = ("combine", "run", "run", "--method", "cat", "--weights", weights, "--out", "out")
    ended = call(place, words)
    assert ended.code == 4 and "give smaller weights" in ended.err and not ended.raised, ended
    assert not (place / "out").exists()
    shutil.rmtree(place)


def test_a_file_of_tensors_has_finite_numbers_alone():
    fine = {"b": torch.ones(2), "a": torch.arange(3)}
    assert {name: one.tolist() for name, one in load(finite_file(fine, "")).items()} == {
        "a": [0, 1, 2],
        "b": [1.0, 1.0],
    }
    with pytest.raises(
        NumericalError, match=r"1 of the 2 numbers of c are not finite, so nothing was .*; go"
    ):
        finite_file({**fine, "c": torch.tensor([1.0, float("inf")])}, "go")


def test_nobody_else_writes_a_whole_file_of_tensors():
    """A checkpoint looks at all numbers at once, and says in which steps one went bad; a batch has token ids alone."""
    root = Path(lrft.__file__).parent
    writes = re.compile(r"^\s*from safetensors\.torch import .*\b(save|save_file)\b", re.MULTILINE)
    found = {
        path.relative_to(root).as_posix() for path in root.rglob("*.py") if writes.search(path.read_text())
    }
    assert found == {"model/finite_file.py", "training/checkpoint.py", "training/diagnose.py"}
