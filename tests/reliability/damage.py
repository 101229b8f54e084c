"""Damaged checkpoints and run folders, and what every command may say of them: the same as before, or one sentence.

`damaged_checkpoints(n, seed)` and `damaged_run_folders(n, seed)` are the full forms (R5); the tests run short ones. A
case damages one file of a copy of a finished run, runs one command, and holds where the command gives the result of the
undamaged run (or that of the checkpoint before, naming the file), or ends in one sentence that names the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lrft.api.asking.doctor import diagnose, judge
from lrft.api.asking.evaluate import evaluate
from lrft.api.merging.merge import merge
from lrft.api.training.train import train
from lrft.core.plain import plain
from lrft.lab.report.report import report
from lrft.lab.spectra.inspect import inspect
from lrft.recipe.load import load_recipe
from lrft.registry.errors import LrftError
from lrft.training.chosen import open_chosen
from lrft.training.folder import RUN, RunFolder
from lrft.training.relied import check_relied, own_recipe, plan_of

ROOT = Path(__file__).parents[2]
RECIPE = """
model: {{name: {model}, dtype: float32}}
adapter: {{method: lora, rank: 2}}
optimizer: {{method: adamw, lr: 0.01}}
data:
  train: {{source: {data}/train.jsonl, limit: 12}}
  eval: {{source: {data}/test.jsonl, limit: 2}}
  format: {{method: prompt_completion, render: chat}}
train: {{max_steps: 4, batch_size: 2, max_length: 160, save_every: 2, keep_last: 9, device: cpu}}
eval: {{tasks: [loss], limit: 2}}
export: {{tolerance: 1.0}}
"""
SECONDS = 120  # of a case; a pipe that is waited for takes for ever


class Outcome(NamedTuple):
    """How many cases were tried, how many held, and what those that did not hold were."""

    tried: int
    held: int
    failures: list[str]


class Case(NamedTuple):
    """One file of a run folder, one kind of damage, one command."""

    file: str
    kind: str
    command: str
    seed: int


swapped: list[str] = []  # what the last file was swapped with

# ---------------------------------------------------------------- kinds of damage


def _flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def _truncate(path: Path, draw: random.Random) -> None:
    os.truncate(path, draw.randrange(path.stat().st_size))


def _zero_tail(path: Path, draw: random.Random) -> None:
    content = path.read_bytes()
    cut = draw.randrange(len(content) - 1)
    path.write_bytes(content[:cut] + bytes(len(content) - cut))


def _longer(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes() + bytes(draw.randrange(1, 9)))


def _swap(path: Path, draw: random.Random) -> None:
    others = sorted(p for p in path.parent.iterdir() if p.is_file() and p.read_bytes() != path.read_bytes())
    if not others:
        return _truncate(path, draw)
    other = draw.choice(others)
    content = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)
    swapped.append(other.name)


def _replaced_by(content: bytes) -> Callable[[Path, random.Random], None]:
    return lambda path, draw: path.write_bytes(content) and None


def _instead(make: Callable[[Path], object]) -> Callable[[Path, random.Random], None]:
    def damage(path: Path, draw: random.Random) -> None:
        path.unlink()
        make(path)

    return damage


def _link_out(path: Path, draw: random.Random) -> None:
    """A link to a file elsewhere that holds the very same: what it would be tomorrow nobody knows."""
    outside = next(parent for parent in path.parents if parent.name.startswith("run")).parent / "outside"
    shutil.copy(path, outside)
    path.unlink()
    path.symlink_to(outside)


def _huge(path: Path, draw: random.Random) -> None:
    os.truncate(path, 2**40)  # sparse: no byte of it is on the disk


def _sparse_or_long(path: Path, draw: random.Random) -> None:
    try:
        _huge(path, draw)
    except OSError:  # a file system without such sizes
        _longer(path, draw)


KINDS: dict[str, Callable[[Path, random.Random], None]] = {
    "flip": _flip,
    "truncate": _truncate,
    "zero tail": _zero_tail,
    "longer": _longer,
    "swap": _swap,
    "missing": lambda path, draw: path.unlink(),
    "empty": _replaced_by(b""),
    "null": _replaced_by(b"null"),
    "list": _replaced_by(b"[1, 2]"),
    "number": _replaced_by(b"7"),
    "deep": _replaced_by(b'{"a":' * 100_000),
    "deep and closed": _replaced_by(b"[" * 500 + b"]" * 500),
    "torn": _replaced_by(b'{"step": 1, "fi'),
    "odd types": _replaced_by(b'{"step": "two", "files": [], "format": {}, "date": 3, "tasks": 1}'),
    "digits": _replaced_by(b'{"step": ' + b"9" * 5000 + b"}"),
    "bad utf-8": _replaced_by(b'{"a": "\xff\xfe"}'),
    "half a pair": _replaced_by(b'{"a": "\\ud800"}'),
    "pipe": _instead(os.mkfifo),
    "folder": _instead(Path.mkdir),
    "device": _instead(lambda path: path.symlink_to("/dev/zero")),
    "link out": _link_out,
    "link loop": _instead(lambda path: path.symlink_to(path.name)),
    "huge": _sparse_or_long,
}


# ---------------------------------------------------------------- commands


def _open(run: Path, aside: Path) -> object:
    """What scoring and merging rely on, without the model."""
    folder = RunFolder(run)
    recipe = own_recipe(run).recipe
    with open_chosen(folder) as saved:
        check_relied(saved, recipe, folder.read(RUN))
        tensors = {name: value.tolist() for name, value in sorted(saved.tensors().items())}
        plan = json.dumps(plan_of(saved, folder), sort_keys=True)
    return [hashlib.sha256(repr(tensors).encode()).hexdigest(), plan, recipe.model_dump_json(), folder.day]


def _evaluate(run: Path, aside: Path) -> object:
    return plain({name: result.metrics for name, result in evaluate(RunFolder(run))["adapter"].items()})


def _merge(run: Path, aside: Path) -> object:
    merge(RunFolder(run), aside / "merged")
    return _digest(aside / "merged" / "model.safetensors")


def _resume(run: Path, aside: Path) -> object:
    """To the end, from wherever that is possible: what comes out is always the same adapter."""
    train(run, resume=True)
    return _digest(run / "adapter" / "adapter_model.safetensors")


def _doctor(run: Path, aside: Path) -> object:
    found = diagnose(run)
    judge(found)
    return [one["check"] for one in found["checks"]]


def _report(run: Path, aside: Path) -> object:
    report([run], aside / "report.html")
    return (aside / "report.html").read_text().replace(run.name, "run")


def _inspect(run: Path, aside: Path) -> object:
    found = plain(inspect(RunFolder(run)))
    assert isinstance(found, dict)
    return {**found, "of": None}


COMMANDS: dict[str, Callable[[Path, Path], object]] = {
    "open": _open,
    "eval": _evaluate,
    "merge": _merge,
    "resume": _resume,
    "doctor": _doctor,
    "report": _report,
    "inspect": _inspect,
}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---------------------------------------------------------------- the run and the oracle


def make_run(model: Path, folder: Path) -> Path:
    """A finished run of four steps with two checkpoints, which was scored and inspected; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / "tiny.yaml"
    recipe.write_text(RECIPE.format(model=model, data=ROOT / "recipes" / "data" / "quickstart"))
    train(load_recipe(recipe), folder / "run")
    return folder / "run"


class Expected:
    """What each command gives of the whole run, and of the run as its first checkpoint left it."""

    def __init__(self, run: Path, aside: Path, commands: tuple[str, ...]) -> None:
        self.run = run
        earlier = Path(shutil.copytree(run, aside / "earlier" / "run"))
        shutil.rmtree(earlier / "checkpoints" / "step-4")
        self.of: dict[str, list[object]] = {}
        for command in commands:
            wholes = [Path(shutil.copytree(run, aside / f"whole-{command}" / "run"))]
            wholes += [] if command in ("resume", "doctor", "report") else [earlier]
            self.of[command] = []
            for number, whole in enumerate(wholes):
                place = aside / f"{command}-{number}"
                place.mkdir()
                self.of[command].append(COMMANDS[command](whole, place))


def try_case(case: Case, expected: Expected, aside: Path) -> str:
    """Damage a copy, run the command; what did not hold, or an empty string."""
    place = Path(tempfile.mkdtemp(dir=aside))
    run = place / f"run{place.name}"
    shutil.copytree(expected.run, run)
    draw = random.Random(case.seed)
    said = io.StringIO()
    before = (run / case.file).read_bytes()
    KINDS[case.kind](run / case.file, draw)
    damaged = run / case.file
    plain_file = damaged.is_file() and not damaged.is_symlink() and damaged.stat().st_size == len(before)
    if plain_file and damaged.read_bytes() == before:
        return ""  # nothing changed, such as zeros that were there
    try:
        with contextlib.redirect_stderr(said), _limit(SECONDS):
            result = COMMANDS[case.command](run, place)
    except LrftError as error:
        return _sentence(str(error), case)
    except Exception as error:
        return f"{case}: {type(error).__name__}: {str(error)[:200]}"
    finally:
        shutil.rmtree(place, ignore_errors=True)
    same = json.dumps(result) if not isinstance(result, str) else result
    wanted = [one if isinstance(one, str) else json.dumps(one) for one in expected.of[case.command]]
    if same == wanted[0]:
        return ""
    if same in wanted[1:] and _names(said.getvalue(), case):
        return ""
    return f"{case}: another result, and nothing was said of it: {said.getvalue()[-300:]}"


def _sentence(text: str, case: Case) -> str:
    if "Traceback" in text or len(text.splitlines()) > 4 or not text.strip():
        return f"{case}: no sentence: {text[:300]}"
    return "" if _names(text, case) else f"{case}: the file is not named: {text[:300]}"


def _names(text: str, case: Case) -> bool:
    """Whether the file is named, or the one that it was swapped with."""
    names = [Path(case.file).name, *(swapped[-1:] if case.kind == "swap" else ())]
    return any(name in text for name in names)


@contextlib.contextmanager
def _limit(seconds: int) -> Iterator[None]:
    """Whatever takes longer waits for something that never comes."""

    def late(number: int, frame: object) -> None:
        raise TimeoutError(f"more than {seconds} s")

    previous = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


# ---------------------------------------------------------------- cases


def checkpoint_files(run: Path) -> list[str]:
    """The files of the newest checkpoint, as paths in the run folder."""
    return sorted(path.relative_to(run).as_posix() for path in (run / "checkpoints" / "step-4").iterdir())


def run_files(run: Path) -> list[str]:
    """All other files of a run folder that a command reads."""
    files = [path.relative_to(run) for path in run.rglob("*") if path.is_file()]
    return sorted(path.as_posix() for path in files if path.parts[0] not in ("checkpoints", ".lock"))


def cases(files: list[str], n: int, seed: int, commands: dict[str, int]) -> Iterator[Case]:
    """`n` cases: every file and every kind in turn, the commands drawn by their weights.

    What was scored or inspected may be removed by anybody: a run without it is a run that was not scored.
    """
    draw = random.Random(seed)
    pairs = [
        (f, k) for f in files for k in KINDS if not (k == "missing" and f.startswith(("eval/", "inspect/")))
    ]
    draw.shuffle(pairs)
    names, weights = list(commands), list(commands.values())
    for number in range(n):
        file, kind = pairs[number % len(pairs)]
        yield Case(file, kind, draw.choices(names, weights)[0], draw.randrange(2**31))


WEIGHTS = {"open": 70, "eval": 8, "doctor": 6, "report": 6, "inspect": 5, "merge": 2, "resume": 3}


def damaged_checkpoints(n: int = 1000, seed: int = 0) -> Outcome:
    """R5: the newest checkpoint of a run is damaged in `n` ways."""
    return _all(checkpoint_files, n, seed)


def damaged_run_folders(n: int = 500, seed: int = 0) -> Outcome:
    """R5: anything else in a run folder is damaged in `n` ways."""
    return _all(run_files, n, seed)


def _all(files: Callable[[Path], list[str]], n: int, seed: int) -> Outcome:
    sys.path.insert(0, str(ROOT / "scripts"))
    import make_tiny_model

    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        aside = Path(name)
        with contextlib.redirect_stderr(io.StringIO()):
            run = make_run(make_tiny_model.make(aside / "model", "llama"), aside)
            evaluate(RunFolder(run))
            inspect(RunFolder(run))
            expected = Expected(run, aside, tuple(WEIGHTS))
        return outcome(list(cases(files(run), n, seed, WEIGHTS)), expected, aside)


def outcome(chosen: list[Case], expected: Expected, aside: Path) -> Outcome:
    """Try all of them."""
    failures = [problem for case in chosen if (problem := try_case(case, expected, aside))]
    return Outcome(len(chosen), len(chosen) - len(failures), failures)


if __name__ == "__main__":
    began = time.monotonic()
    for check in (damaged_checkpoints, damaged_run_folders):
        found: Any = check(*map(int, sys.argv[1:]))
        print(check.__name__, found.tried, "tried", found.held, "held", f"{time.monotonic() - began:.0f} s")
        print(*found.failures, sep="\n")
