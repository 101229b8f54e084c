"""Every method on one task: what it learns, how long a step takes beside LoRA's, and what it needs.

    python scripts/board.py                                    what is missing; about 18 minutes a method on two cores
    python scripts/board.py --methods adapter=dora,init=pissa  some
    python scripts/board.py --budget-minutes 50                no run is begun that may not end within them
    python scripts/board.py --jobs 3 --cluster ray             the runs of a method beside each other, on a cluster
    python scripts/board.py --smoke --out FOLDER               three steps of a tiny model, in this process
    python scripts/board.py --check                            exits 1 where the page is not what the record says

The task is the quickstart (recipes/quickstart.yaml): 54 steps, NF4 where the method goes on it. The rate is the best
of three on a seed of its own, then two seeds are scored: held-out loss and exact match. A step is timed in turn with
LoRA's in one process. Each run is one line of docs/methods/board.jsonl as it ends; the same command goes on, and a run
that was killed goes on from its checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import board_page  # noqa: E402
import make_tiny_model  # noqa: E402
from bench_pairs import measure, summary, warm  # noqa: E402
from board_entries import REFERENCE, SMOKE_STEPS, STEPS, Entry, entry, methods, mixes  # noqa: E402
from board_steps import Stepped  # noqa: E402
from generated import out_of_date  # noqa: E402
from lrft import __version__  # noqa: E402
from lrft.api.training.train import train  # noqa: E402
from lrft.core.notes import say, silence  # noqa: E402
from lrft.files.fresh_folder import remove_folder  # noqa: E402
from lrft.lab.compare.collected import LOSS  # noqa: E402
from lrft.lab.compare.comparison import choose_rates  # noqa: E402
from lrft.lab.runs.executor import Executor, write_recipe  # noqa: E402
from lrft.lab.runs.local import Progress, run_all  # noqa: E402
from lrft.lab.runs.outcome import DIVERGED, finished, result, value  # noqa: E402
from lrft.lab.runs.planned import TUNING_SEED, PlannedRun, plan_run  # noqa: E402
from lrft.lab.runs.where import place_runs  # noqa: E402
from lrft.registry.did_you_mean import did_you_mean  # noqa: E402
from lrft.registry.errors import DataError, Interrupted, LrftError, NumericalError, RecipeError  # noqa: E402
from lrft.training.folder import RunFolder  # noqa: E402

RECORD = ROOT / "docs" / "methods" / "board.jsonl"
SEEDS = (0, 1)
EXACT = "exact_match.exact_match"
PAIRS, FOREIGN = 7, 0.1
REFUSALS = (
    RecipeError.exit_code,
    DataError.exit_code,
    NumericalError.exit_code,
)  # the same whenever it is tried
GUESS = 300.0  # seconds of a run before any has been seen
QUIET = ["train.eval_every=1000000000", "train.save_every=1000000000"]
TINY = ["model.dtype=float32", "data.train.limit=16", "data.eval.limit=2", "train.device=cpu", "train.max_length=160",
        "eval.tasks=[loss, {method: exact_match, compare: json, max_new_tokens: 2}]"]  # fmt: skip

Line = dict[str, Any]


@dataclass
class Board:
    """What is run, where it is kept, and when it stops.

    Attributes:
        ends: when no run may go on; seconds of `time.monotonic`.
        finish: finishes runs that are not, wherever they run.
        jobs: how many of them at a time.
        longest: of the runs seen, by which the next one is judged.
    """

    record: Path
    out: Path
    base: list[str]
    steps: int
    finish: Callable[[Sequence[PlannedRun]], None]
    jobs: int = 1
    foreign: float = FOREIGN
    pairs: int = PAIRS
    ends: float = math.inf
    longest: float = GUESS
    lines: list[Line] = field(default_factory=list)

    def of(self, key: str, kind: str) -> list[Line]:
        """The lines of a method that are of this version."""
        return [x for x in self.lines if (x["key"], x["kind"], x["version"]) == (key, kind, __version__)]

    def add(self, line: Line) -> None:
        """Keep a line, at once."""
        self.lines.append(line)
        with self.record.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        said = {
            key: line[key] for key in ("rate", "seed", "loss", "exact_match", "ratio", "said") if key in line
        }
        print(line["key"], line["kind"], said, flush=True)

    def room(self) -> None:
        """Stop before a run that may not end in time.

        Raises:
            OutOfTime: it may not.
        """
        if time.monotonic() + self.longest > self.ends:
            raise OutOfTime


class OutOfTime(Exception):
    """The budget has no room for another run."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing and write the page, or check it; the exit code."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    if chosen.check:
        stale = out_of_date(fresh())
        print("\n".join(f"{p.name} is out of date; run scripts/board.py" for p in stale), file=sys.stderr)
        return int(bool(stale))
    if chosen.smoke and chosen.out is None:
        parser.error("--smoke: name a folder with --out; what it finds is no result")
    names = methods() if chosen.methods is None else chosen.methods.split(",")
    for name in names:
        if name not in methods():
            parser.error(f"--methods: there is no {name}{did_you_mean(name, methods())}")
    out = chosen.out or ROOT / "runs" / "board"
    try:
        executor = place_runs(chosen.cluster, chosen.cluster_set, out, chosen.jobs)
    except LrftError as error:
        parser.error(str(error))
    board = _board(chosen.smoke, out, chosen.jobs, executor)
    board.ends = time.monotonic() + 60 * chosen.budget_minutes
    board.lines = read(board.record)
    silence(True)
    code = 0
    try:
        for name in names:
            fill(board, name)
    except OutOfTime:
        print(f"no room for another run of {board.longest:.0f} s; the same command goes on", flush=True)
    except Interrupted as error:
        print(error, file=sys.stderr)
        code = error.exit_code
    finally:
        silence(False)
    pages = fresh(board.record, board.out) if chosen.smoke else fresh()
    for path, text in pages.items():
        path.write_text(text, encoding="utf-8")
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", help="some, as AXIS=NAME with commas between them; by default all")
    parser.add_argument("--budget-minutes", type=float, default=math.inf)
    parser.add_argument("--smoke", action="store_true", help="a tiny model and three steps; needs --out")
    parser.add_argument("--out", type=Path, help="folder of the runs; with --smoke of record and page too")
    parser.add_argument("--check", action="store_true", help="run and write nothing")
    parser.add_argument(
        "--jobs",
        type=int,
        choices=range(1, 4),
        default=1,
        help="trainings at a time: a method has three, then two",
    )
    parser.add_argument("--cluster", help="slurm, local or ray; by default processes of this machine")
    parser.add_argument("--cluster-set", action="append", default=[], metavar="KEY=VALUE")
    return parser


def fresh(record: Path = RECORD, folder: Path | None = None) -> dict[Path, str]:
    """The page and its plots."""
    place = folder or record.parent
    return {
        place / name: text for name, text in board_page.files(read(record), methods(), __version__).items()
    }


def read(record: Path) -> list[Line]:
    """Every line that is whole."""
    if not record.is_file():
        return []
    return [
        json.loads(text) for text in record.read_text(encoding="utf-8").splitlines() if text.endswith("}")
    ]


def fill(board: Board, key: str) -> None:
    """The runs of a method that are missing: its rates, its seeds, its time.

    Raises:
        OutOfTime: there is no room for the next one.
    """
    if board.of(key, "refused"):
        return
    given = _given(board) if mixes(key) else []
    if mixes(key) and len(given) < len(SEEDS):
        print(f"{key}: mixes two adapters; run {'='.join(REFERENCE)} first", flush=True)
        return
    found = entry(key, board.base, given, board.steps)
    if found.arm is None:
        board.add(_line(found, "refused", said=found.said))
        return
    try:
        rate = _tune(board, found)
        _score(board, found, rate)
        _time(board, found, rate)
    except Interrupted:
        raise
    except LrftError as error:
        if error.exit_code in REFUSALS:
            board.add(_line(found, "refused", said=" ".join(str(error).split())))
        else:  # killed, out of memory, no disk: tried again by the same command
            print(f"{key}: {error}", flush=True)


def _tune(board: Board, found: Entry) -> float:
    """The rate with the lowest held-out loss on the seed that no score is made on."""
    assert found.arm is not None
    tuned = replace(found, arm=found.arm.changed(f"train.eval_every={board.steps}", "eval.tasks=[]"))
    losses: list[float | None] = []
    tried = {x["rate"] for x in board.of(found.key, "tune")}
    _beside(board, tuned, [(rate, TUNING_SEED) for rate in found.rates if rate not in tried])
    for rate in found.rates:
        done = [x for x in board.of(found.key, "tune") if x["rate"] == rate]
        line = done[0] if done else _run(board, tuned, "tune", rate, TUNING_SEED)
        losses.append(line["loss"])
    chosen = choose_rates([found.arm], {found.key: list(found.rates)}, {found.key: losses})
    return chosen[found.key]


def _score(board: Board, found: Entry, rate: float) -> None:
    """Two seeds at the chosen rate, scored on the held-out rows after the last step."""
    assert found.arm is not None
    due = [f"train.eval_every={board.steps}", f"train.eval_tasks_every={board.steps}"]
    scored = replace(found, arm=found.arm.changed(*due))
    known = {(x["rate"], x["seed"]) for x in board.of(found.key, "score")}
    missing = [seed for seed in SEEDS if (rate, seed) not in known]
    _beside(board, scored, [(rate, seed) for seed in missing])
    for seed in missing:
        _run(board, scored, "score", rate, seed)


def _beside(board: Board, found: Entry, wanted: Sequence[tuple[float, int]]) -> None:
    """Trainings of some rates and seeds at once, where more than one may run; their lines come after."""
    assert found.arm is not None
    runs = [plan_run(found.arm, rate, seed, board.out) for rate, seed in wanted]
    missing = [run for run in runs if not finished(run)]
    if board.jobs > 1 and len(missing) > 1:
        board.room()
        board.finish(missing)


def _run(board: Board, found: Entry, kind: str, rate: float, seed: int) -> Line:
    """One training, and its line."""
    assert found.arm is not None
    board.room()
    began = time.monotonic()
    run = plan_run(found.arm, rate, seed, board.out)
    if not finished(run):
        board.finish([run])
    remove_folder(run.folder / "checkpoints")
    board.longest = max(time.monotonic() - began, 0.0 if board.longest == GUESS else board.longest)
    told = result(run)
    costs = {
        name: told.get(name) for name in ("trainable", "peak_memory_bytes", "adapter_bytes", "step_seconds")
    }
    exact = {"exact_match": value(run, EXACT)} if kind == "score" else {}
    line = _line(
        found, kind, rate=rate, seed=seed, loss=value(run, LOSS), run=run.folder.name, **exact, **costs
    )
    board.add(line)
    return line


def _time(board: Board, found: Entry, rate: float) -> None:
    """A step in turn with one of LoRA on the same storage, in this process; LoRA itself is 1."""
    assert found.arm is not None
    if any(line["ratio"] is not None for line in board.of(found.key, "time")):
        return
    board.room()
    if (found.axis, found.name) == REFERENCE:
        board.add(_line(found, "time", ratio=1.0, seconds=None, pairs=0))
        return
    lora = entry("=".join(REFERENCE), board.base, [], board.steps)
    assert lora.arm is not None
    sides: list[Stepped] = []
    with tempfile.TemporaryDirectory() as scratch:
        try:
            for one, lr in ((found, rate), (lora, lora.rates[1])):
                assert one.arm is not None
                storage = f"quantization={found.storage}"
                recipe = one.arm.changed(storage, *QUIET, f"optimizer.lr={lr!r}", "eval.tasks=[]").recipe
                sides.append(Stepped(one.key, recipe, Path(scratch) / f"side-{len(sides)}"))
            warm(sides, None, 1)
            pairs, discarded = measure(sides[0], sides[1], [None], board.pairs, board.foreign)
        finally:
            for side in sides:
                side.leave()
    told = summary(sides[0], sides[1], pairs, discarded, [1])
    ratio = None if told["ratio"] is None else 1 / told["ratio"]["median"]
    seconds = None if ratio is None else [told["seconds"][side.name] for side in sides]
    board.add(_line(found, "time", ratio=ratio, seconds=seconds, pairs=len(pairs), said=told["missed"] or ""))


def _line(found: Entry, kind: str, **told: Any) -> Line:
    head = {"key": found.key, "kind": kind, "storage": found.storage, "settings": found.settings}
    if "said" in told:
        told["said"] = told["said"].replace(f"{ROOT}/", "")
    return {**head, **told, "version": __version__}


def _given(board: Board) -> list[str]:
    """Two LoRAs of the board, where they have been trained."""
    runs = [board.out / "runs" / x["run"] for x in board.of("=".join(REFERENCE), "score")]
    return [str(run) for run in runs if run.is_dir()]


def _board(smoke: bool, out: Path, jobs: int, executor: Executor | None) -> Board:
    """The board on the real model, as processes or on a cluster; or on a tiny one, by default here."""

    def elsewhere(runs: Sequence[PlannedRun]) -> None:
        run_all(runs, jobs, Progress(len(runs), jobs), executor)

    if not smoke:
        return Board(RECORD, out, [], STEPS, elsewhere, jobs)
    out.mkdir(parents=True, exist_ok=True)
    model = out / "model"
    if not model.is_dir():
        make_tiny_model.make(model)
    base = [f"model.name={model}", *TINY]
    finish = _here if jobs == 1 and executor is None else elsewhere
    return Board(out / RECORD.name, out, base, SMOKE_STEPS, finish, jobs, math.inf, 1, longest=0.0)


def _here(runs: Sequence[PlannedRun]) -> None:
    """As processes would: what stops being finite is finished too."""
    for run in runs:
        recipe = write_recipe(run)
        try:
            train(recipe, run.folder, resume=run.folder.exists())
        except NumericalError as error:
            RunFolder(run.folder).write(DIVERGED, {"message": str(error)})
            say(f"{run}: diverged")


if __name__ == "__main__":
    raise SystemExit(main())
