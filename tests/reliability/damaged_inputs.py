"""Every folder that a command reads beside a run, damaged in each of its files: the same result, or one sentence.

`check(n, seed)` takes `n` of all files and kinds of damage (of `damage.KINDS`); the tests take a few. What the sentence
names is the file, or, of a folder that is believed as a whole, the folder.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from lrft.files.json import with_sum
from tests.reliability.damage import KINDS, _limit, swapped
from tests.reliability.full_disk import COMMANDS, GENERATOR, ROOT, Bench, Called, call
from tests.reliability.outcome import Outcome, tiny_model

GIVEN = (
    *("recipe.yaml", "other.yaml", "choices.yaml", "many.yaml", "arms.yaml", "space.yaml"),
    *("ask.txt", "prompts.txt", "verify.txt", "goal.jsonl"),
    *("choices-train.jsonl", "choices-test.jsonl", "many-train.jsonl", "many-test.jsonl"),
)
FLIPS = 3  # of a file: headers are as long as the tensors of a tiny model
SECONDS = 90  # of a case; a pipe that is waited for takes for ever
TEXT = {"flip", "zero tail", "longer", "swap", "truncate"}  # of which a text of the user's is another text
IN_TURN = (
    *("train.max_steps=null", "train.epochs=1", "data.mix.order=in_turn", "data.eval=null", "data.split=2"),
    "data.train=[{source: choices-train.jsonl, limit: 4}, {source: choices-test.jsonl}]",
)
OFFLOAD = "offload={weights: disk, optimizer: disk}"
FEDERATED = "federate={clients: 2, rounds: 2, local_steps: 1, partition: even, aggregate: fed_stale}"


@dataclass(frozen=True)
class Attacked:
    """A command, and what of its inputs is damaged.

    Attributes:
        takes: folders and files that it is given; of `Prepared.make`.
        damaged: the files of these that are damaged, as patterns.
        words: what follows `lrft`.
        compared: what has to be the same where it ends well, as patterns; with what it prints where `prints`.
        of_user: files that somebody writes by hand: another text in one is another question.
        of_stranger: files of which nobody knows a sum: whatever they say may be another model.
        falls_back: the checkpoint before may be taken, and is, by name.
        stays: what it takes has to lie where it was made, as recipes in it name files of it.
    """

    takes: tuple[str, ...]
    damaged: tuple[str, ...]
    words: tuple[str, ...]
    compared: tuple[str, ...] = ("out/**/*",)
    prints: bool = False
    of_user: bool = False
    of_stranger: bool = False
    falls_back: bool = False
    stays: bool = False


SWEEP = ("sweep", "recipe.yaml", "adapter.rank=1,2", "--out", "swept")
ARMS = ("sweep", "recipe.yaml", "--arms", "arms.yaml", "--out", "swept", "train.max_steps=1")
SEARCH = ("search", "recipe.yaml", "--space", "space.yaml", "--budget", "2", "--out", "found")
COMPARE = ("compare", "recipe.yaml", "other.yaml", "--match", "steps", "--lr-grid", "1e-3", "--seeds", "1")
COMPARE = (*COMPARE, "--out", "compared")
GENERATE = ("generate", "run", "prompts.txt", "--out", "answers.jsonl", "--max-new-tokens", "2")
NEW = ("--out", "new", "train.max_steps=1")
RUN, OUT = ("run/**/*",), ("out/*.safetensors", "out/*.gguf")
MERGE = ("--method", "softmax_merge")
SELECT = ("data", "select", "recipe.yaml", "--method", "perplexity", "--budget", "2", "--out", "few.jsonl")
AUGMENT = ("data", "augment", "recipe.yaml", "--prompt", "ask.txt", "--out", "more.jsonl")
AUGMENT = (*AUGMENT, "--into", "completion", "--max-new-tokens", "2")
VERIFY = (
    "data",
    "augment",
    "recipe.yaml",
    "data.train.limit=3",
    "--prompt",
    "ask.txt",
    "--verify",
    "verify.txt",
)
VERIFY = (*VERIFY, "--allow-code", "--stages", "1", "--into", "completion", "--max-new-tokens", "2")
VERIFY = (*VERIFY, "--out", "solved.jsonl")
SOLVED = [
    "solved.jsonl",
    *(
        f"solved.1-{part}.answers.jsonl{beside}"
        for part in ("program", "printed", "verified")
        for beside in ("", ".about.json")
    ),
]
TRANSFER = tuple("carried" if word == "moved" else word for word in COMMANDS["transfer"].words)
FIT = ("generate-adapter", "fit", "run", "--method", GENERATOR, "--out", "fitting")
RANK = (
    "data",
    "rank",
    "recipe.yaml",
    "data.train.limit=24",
    "--method",
    "textemb",
    "--source",
    "choices.yaml",
)
RANK = (*RANK, "--out", "order.json")
CHOOSE = ("choose", "many.yaml", "--shots", "0", "--out", "chosen")
MEASURED = "order.target.embeddings.jsonl"
ATTACKED = {
    "eval-posterior": Attacked(
        ("choice",), ("choice/posterior/*",), ("eval", "choice", "--posterior"), (), True
    ),
    "posterior": Attacked(
        ("choice",), ("choice/posterior/*",), ("posterior", "choice"), ("choice/posterior/*",)
    ),
    "delta-apply": Attacked(
        ("difference", "base"), ("difference/**/*",), ("delta", "apply", "difference", "base", "--out", "out")
    ),
    "delta-apply-small": Attacked(
        ("small", "base"), ("small/**/*",), ("delta", "apply", "small", "base", "--out", "out")
    ),
    "delta-compress": Attacked(
        ("difference",),
        ("difference/**/*",),
        ("delta", "compress", "difference", "--ratio", "0.5", "--out", "out"),
    ),
    "combine": Attacked(
        ("run", "exported"),
        ("exported/*",),
        ("combine", "run", "exported", "--method", "svd", "--out", "out"),
        ("out/adapter/*.safetensors", "out/*.safetensors"),
    ),
    "generate-adapter": Attacked(
        ("generator",),
        ("generator/*",),
        ("generate-adapter", "draw", "generator", "recipe.yaml", "--describe", "a", "--out", "out"),
        ("out/adapter/*.safetensors", "out/*.safetensors"),
    ),
    "merge-add": Attacked(
        ("run", "exported"),
        ("exported/*",),
        ("merge", "run", "--add", "exported", "--out", "out"),
        ("out/*.safetensors",),
    ),
    "serve": Attacked(("run", "exported"), ("exported/*",), ("serve", "run", "exported"), (), True),
    "serve-combined": Attacked(("run", "both"), ("both/*",), ("serve", "run", "both"), (), True),
    "doctor-combined": Attacked(("both",), ("both/*",), ("doctor", "both"), (), True),
    "eval-combined": Attacked(("both",), ("both/*",), ("eval", "both"), (), True),
    "data-select": Attacked(
        ("few.losses.jsonl", "few.losses.jsonl.about.json", "few.jsonl"), ("few*",), SELECT, ("few.jsonl",)
    ),
    "data-augment": Attacked(
        ("more.answers.jsonl", "more.answers.jsonl.about.json", "more.jsonl"),
        ("more*",),
        AUGMENT,
        ("more.jsonl",),
    ),
    "data-augment-verify": Attacked(tuple(SOLVED), ("solved*",), VERIFY, ("solved.jsonl",)),
    "transfer": Attacked(
        ("run", "carried"),
        ("carried/**/*",),
        TRANSFER,
        ("carried/run/adapter/*.safetensors",),
        stays=True,
    ),
    "transfer-begun": Attacked(
        ("run", "begun"),
        ("begun/**/*",),
        tuple("begun" if word == "carried" else word for word in TRANSFER),
        ("begun/run/adapter/*.safetensors",),
        stays=True,
    ),
    "generate-adapter-fit": Attacked(("run", "fitting"), ("fitting/*",), FIT, ("fitting/*",)),
    "data-rank": Attacked(
        (MEASURED, f"{MEASURED}.about.json", "order.json"), ("order*",), RANK, ("order.json",)
    ),
    "choose": Attacked(("chosen",), ("chosen/*",), CHOOSE, ("chosen/choice.json",)),
    "augment-prompt": Attacked((), ("ask.txt",), AUGMENT, of_user=True),
    "select-target": Attacked(
        (),
        ("goal.jsonl",),
        (
            *("data", "select", "recipe.yaml", "--method", "betr", "--target", "goal.jsonl", "--budget", "2"),
            *("--out", "served.jsonl"),
        ),
        of_user=True,
    ),
    "sweep": Attacked(("swept",), ("swept/**/*",), SWEEP, ("swept/sweep.csv",)),
    "sweep-arms": Attacked((), ("arms.yaml",), ARMS, (), of_user=True),
    "search": Attacked(("found",), ("found/**/*",), SEARCH, ("found/search.csv", "found/best.yaml")),
    "search-space": Attacked((), ("space.yaml",), SEARCH, (), of_user=True),
    "compare": Attacked(("compared",), ("compared/**/*",), COMPARE, ("compared/report.csv",)),
    "export": Attacked(
        ("run",), RUN, ("export", "run", "--for", "vllm", "--out", "out"), OUT, falls_back=True
    ),
    "merge-requantize": Attacked(
        ("run",), RUN, ("merge", "run", "--out", "out", "--requantize", "q4_0"), OUT, falls_back=True
    ),
    "generate": Attacked(("run",), RUN, GENERATE, ("answers.jsonl",), falls_back=True),
    "generate-prompts": Attacked(("run",), ("prompts.txt",), GENERATE, (), of_user=True),
    "generate-again": Attacked(
        ("run", "answers.jsonl", "answers.jsonl.about.json"), ("answers*",), GENERATE, ("answers.jsonl",)
    ),
    "doctor-exported": Attacked(("exported",), ("exported/*",), ("doctor", "exported"), (), True),
    "doctor-gguf": Attacked(("as_gguf",), ("as_gguf/*",), ("doctor", "as_gguf"), (), True),
    "inspect-exported": Attacked(("exported",), ("exported/*",), ("inspect", "exported"), (), True),
    "report": Attacked(("run", "choice"), ("choice/**/*",), ("report", "run", "choice"), ()),
    "plan-predict": Attacked(
        ("longer",),
        ("longer/**/*",),
        ("plan", "recipe.yaml", "--predict", "longer", "--device", "8GiB"),
        (),
        True,
        falls_back=True,
    ),
    "plan-base": Attacked(
        ("base",), ("base/*",), ("plan", "recipe.yaml", "model.name=base"), (), of_stranger=True
    ),
    "train-base": Attacked(
        ("base",), ("base/*",), ("train", "recipe.yaml", "model.name=base", *NEW), (), of_stranger=True
    ),
    "delta-diff": Attacked(
        ("base", "tuned"),
        ("tuned/*",),
        ("delta", "diff", "base", "tuned", "--out", "out"),
        (),
        of_stranger=True,
    ),
    "data-show": Attacked((), ("choices*",), ("data", "show", "choices.yaml"), (), of_user=True),
    "data-check": Attacked((), ("choices*",), ("data", "check", "choices.yaml"), (), of_user=True),
    "federate": Attacked(
        ("federated",),
        ("federated/**/*",),
        ("federate", "federated", "--resume"),
        ("federated/adapter/*.safetensors",),
    ),
    "train-offload": Attacked(
        ("offloaded",),
        ("offloaded/**/*",),
        ("train", "offloaded", "--resume"),
        ("offloaded/adapter/*.safetensors",),
    ),
    "train-hqq": Attacked(
        ("stored",), ("stored/**/*",), ("train", "stored", "--resume"), ("stored/adapter/*.safetensors",)
    ),
    "eval-hqq": Attacked(("stored",), ("stored/**/*",), ("eval", "stored"), (), True, falls_back=True),
    "train-in-turn": Attacked(
        ("taught",),
        ("taught/**/*",),
        ("train", "taught", "--resume"),
        ("taught/adapter/*.safetensors",),
    ),
}


class Case(NamedTuple):
    """One file, one kind of damage, one command."""

    attack: str
    file: str
    kind: str
    seed: int

    def __str__(self) -> str:
        return f"{self.attack}, {self.kind} in {self.file}"


class Prepared:
    """What the commands read, each made once, in a folder with the recipes of a `Bench`."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.folder = bench.folder / "prepared"
        self._whole: dict[str, object] = {}
        if not self.folder.exists():
            shutil.copytree(bench.start, self.folder)
            shutil.copytree(bench._trained("recipe.yaml"), self.folder / "run")
            shutil.copytree(bench._moved(), self.folder, dirs_exist_ok=True)
            shutil.copy(ROOT / "recipes/data/quickstart/test.jsonl", self.folder / "goal.jsonl")
            (self.folder / "arms.yaml").write_text("plain: []\nwide: [adapter.rank=3, adapter.alpha=8]\n")
            recipe = (self.folder / "recipe.yaml").read_text()
            (self.folder / "other.yaml").write_text(recipe.replace("rank: 2", "rank: 3"))

    def make(self, name: str) -> Path:
        """A folder or a file of this name, made by the commands that make it."""
        path = self.folder / name
        if not path.exists():
            there = (
                self.place(("run",), self.bench.folder, True) if name in ("carried", "begun") else self.folder
            )
            for words in MAKES[name]:
                ended = _killed_after_a_step(there) if words is FIT else call(there, words)
                assert ended.code == 0, (words, ended)
            if there != self.folder:
                shutil.move(there / name, path)
            if name in ("federated", "offloaded", "taught", "stored"):
                _halfway(path)
            if name == "carried":
                _halfway(path / "run")
                (path / "result.json").unlink()
            if name == "begun":
                _begun(path)
            if name.startswith("more"):
                self._answer_to_the_end()
            if name.startswith("solved"):
                self._solve()
        return path

    def _answer_to_the_end(self) -> None:
        """As if the tiny model had answered in texts and ended them: of those rows are made."""
        path = self.folder / "more.answers.jsonl"
        _said(path, [f"answer {k}" for k in range(len(path.read_text().splitlines()))])
        (self.folder / "more.jsonl").unlink()
        assert call(self.folder, AUGMENT).code == 0 and (self.folder / "more.jsonl").read_text()

    def _solve(self) -> None:
        """As if the tiny model had written a program for every row, and said what it printed."""
        rows = (ROOT / "recipes/data/quickstart/train.jsonl").read_text().splitlines()[:3]
        counts = [json.loads(json.loads(row)["completion"])["count"] for row in rows]
        program = "```python\nprint({})\n```"
        for part, said in (("program", program), ("verified", "It fits.\nAnswer: {}")):
            _said(self.folder / f"solved.1-{part}.answers.jsonl", [said.format(one) for one in counts])
            (self.folder / "solved.jsonl").unlink()
            assert call(self.folder, VERIFY).code == 0
        assert (self.folder / "solved.jsonl").read_text()

    def place(self, takes: Sequence[str], aside: Path, stays: bool = False) -> Path:
        """A new folder with what a command takes, and the recipes, rows and texts; the same one for all that stays."""
        whole = {name: self.make(name) for name in takes}
        place = self.bench.folder / "run-here" if stays else Path(tempfile.mkdtemp(dir=aside, prefix="run"))
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        for name in GIVEN:
            shutil.copy(self.folder / name, place / name)
        for name, made in whole.items():
            shutil.copytree(made, place / name) if made.is_dir() else shutil.copy(made, place / name)
        return place

    def whole(self, name: str, aside: Path) -> object:
        """What the command leaves and says where nothing is damaged."""
        if name not in self._whole:
            attack = ATTACKED[name]
            place = self.place(attack.takes, aside, attack.stays)
            ended, found = _run(attack, place)
            assert ended.code == 0, (name, ended)
            self._whole[name] = found
            shutil.rmtree(place)
        return self._whole[name]

    def files(self, name: str, aside: Path) -> list[str]:
        """The files of a command that are damaged."""
        attack = ATTACKED[name]
        place = self.place(attack.takes, aside, attack.stays)
        found = {path for pattern in attack.damaged for path in place.glob(pattern) if path.is_file()}
        shutil.rmtree(place)
        return sorted(path.relative_to(place).as_posix() for path in found if path.name != ".lock")


MAKES: dict[str, list[tuple[str, ...]]] = {
    "longer": [("train", "recipe.yaml", "--out", "longer", "train.max_steps=6")],
    "swept": [SWEEP],
    "found": [SEARCH],
    "compared": [COMPARE],
    "answers.jsonl": [GENERATE],
    "answers.jsonl.about.json": [GENERATE],
    "as_gguf": [("export", "run", "--for", "gguf", "--merged", "--out", "as_gguf")],
    "choice": [("train", "choices.yaml", "--out", "choice"), ("posterior", "choice")],
    "small": [("delta", "compress", "difference", "--ratio", "0.5", "--out", "small")],
    "exported": [("export", "run", "--for", "lora", "--out", "exported")],
    "generator": [("generate-adapter", "fit", "run", *MERGE, "--describe", "run=a", "--out", "generator")],
    "both": [("combine", "run", "run", "--method", "svd", "--out", "both")],
    "few.jsonl": [SELECT],
    "few.losses.jsonl": [SELECT],
    "few.losses.jsonl.about.json": [SELECT],
    "order.json": [RANK],
    MEASURED: [RANK],
    f"{MEASURED}.about.json": [RANK],
    "chosen": [CHOOSE],
    **{name: [VERIFY] for name in SOLVED},
    "carried": [TRANSFER],
    "begun": [tuple("begun" if word == "carried" else word for word in TRANSFER)],
    "fitting": [FIT],
    "more.jsonl": [AUGMENT],
    "more.answers.jsonl": [AUGMENT],
    "more.answers.jsonl.about.json": [AUGMENT],
    "federated": [("federate", "recipe.yaml", "--out", "federated", "train.max_steps=null", FEDERATED)],
    "taught": [("train", "choices.yaml", "--out", "taught", *IN_TURN)],
    "stored": [("train", "recipe.yaml", "--out", "stored", "quantization={method: hqq, bits: 3}")],
    "offloaded": [("train", "recipe.yaml", "--out", "offloaded", OFFLOAD)],
}


def _said(path: Path, texts: Sequence[str]) -> None:
    """Give the lines of a file of answers other outputs, which end."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    said = [
        with_sum({**line, "stopped": True, "output": text}) for line, text in zip(lines, texts, strict=True)
    ]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in said))


def _begun(transfer: Path) -> None:
    """As a kill leaves it that comes once the candidates are written."""
    for name in ("run", "scores.jsonl", "outputs.jsonl", "rows.jsonl", "candidates.jsonl", "result.json"):
        path = transfer / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        (transfer / f"{name}.about.json").unlink(missing_ok=True)
    files = json.loads((transfer / "done.json").read_text())["files"]
    left = {name: files[name] for name in ("seeds.jsonl", "discriminator.jsonl")}
    (transfer / "done.json").write_text(json.dumps(with_sum({"files": left})))


def _killed_after_a_step(folder: Path) -> Called:
    """A fit as a kill leaves it that comes after the first step was saved."""
    from lrft.api.generating import steps

    class Killed(BaseException):
        pass

    write, seconds = steps.write_generator, steps.SECONDS

    def then_killed(*arguments: Any) -> None:
        write(*arguments)
        raise Killed

    steps.write_generator, steps.SECONDS = then_killed, 0.0
    try:
        with contextlib.suppress(Killed):
            call(folder, FIT)
    finally:
        steps.write_generator, steps.SECONDS = write, seconds
    return Called(int(not (folder / "fitting" / "optimizer.safetensors").exists()), "", "")


def _halfway(run: Path) -> None:
    steps = sorted((run / "checkpoints").iterdir(), key=lambda one: int(one.name.partition("-")[2]))
    for path in (*steps[1:], run / "adapter", run / "last", run / "best", run / "result.json"):
        if path.is_symlink() or path.is_file():
            path.unlink()
        elif path.exists():
            shutil.rmtree(path)


def _run(attack: Attacked, place: Path) -> tuple[Called, object]:
    """How the command ended, and what it left and said."""
    ended = _serve(place, attack.words[1:]) if attack.words[0] == "serve" else call(place, attack.words)
    if ended.code:
        return ended, None
    left = {
        path.relative_to(place).as_posix(): hashlib.sha256(_timeless(path)).hexdigest()
        for pattern in attack.compared
        for path in sorted(place.glob(pattern))
        if path.is_file()
    }
    return ended, [left, ended.out if attack.prints else ""]


def _timeless(path: Path) -> bytes:
    """What a file holds; of a table, without the columns that say how long a run took."""
    if path.suffix != ".csv":
        return path.read_bytes()
    rows = list(csv.DictReader(path.read_text().splitlines()))
    return json.dumps([{k: v for k, v in row.items() if "seconds" not in str(k)} for row in rows]).encode()


def _serve(place: Path, names: Sequence[str]) -> Called:
    """What `lrft serve` opens before it answers, with the sums of what it would compute with."""
    from lrft.registry.errors import LrftError
    from lrft.serve.voices import gather

    err = StringIO()
    with chdir(place), redirect_stderr(err), redirect_stdout(err):
        try:
            choir = gather(names)
            sums = {
                name: {site: [float(t.double().sum()) for t in pair] for site, pair in source.read().items()}
                for name, source in choir.sources.items()
            }
        except LrftError as error:
            lines = "".join(f"error: {line}\n" for line in str(error).splitlines())
            return Called(error.exit_code, "", err.getvalue() + lines)
        except Exception as error:
            return Called(1, "", err.getvalue(), f"{type(error).__name__}: {error}")
    return Called(0, json.dumps(sums), err.getvalue())


def try_case(case: Case, prepared: Prepared, aside: Path) -> str:
    """Damage a copy, run the command; what did not hold, or an empty string."""
    attack = ATTACKED[case.attack]
    wanted = prepared.whole(case.attack, aside)
    place = prepared.place(attack.takes, aside, attack.stays)
    try:
        path = place / case.file
        before = path.read_bytes()
        KINDS[case.kind](path, random.Random(case.seed))
        regular = path.is_file() and not path.is_symlink()
        if regular and path.stat().st_size == len(before) and path.read_bytes() == before:
            return ""  # nothing changed, such as zeros that were there
        with _limit(SECONDS):
            ended, found = _run(attack, place)
        return _wrong(case, attack, ended, found == wanted)
    except TimeoutError as error:
        return f"{case}: {error}"
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _wrong(case: Case, attack: Attacked, ended: Called, same: bool) -> str:
    if ended.raised or "Traceback" in ended.err:
        return f"{case}: {(ended.raised or ended.err)[-300:]}"
    if ended.code == 0:
        told = attack.words[0] == "doctor" and Path(case.file).name in ended.out
        told |= attack.falls_back and any(name in ended.err for name in (Path(case.file).name, *swapped[-1:]))
        if same or told or attack.of_stranger or (attack.of_user and case.kind in TEXT):
            return ""
        return f"{case}: another result, and nothing was said of it: {ended.err[-200:]}"
    errors = [line for line in ended.err.splitlines() if line.startswith(("error: ", "  "))]
    if not 1 <= len(errors) <= (12 if attack.of_user else 4):  # of what a user writes every problem is told
        return f"{case}: no sentence: {ended.err[-300:]}"
    # Files beside one another have one name but for the ending; what a user wrote is named by its option.
    names = {Path(case.file).name.partition(".")[0], *Path(case.file).parts[:-1]}
    names |= {"--prompt", "--target"} if attack.of_user else set()
    names |= {name.partition(".")[0] for name in swapped[-1:]} if case.kind == "swap" else set()
    named = attack.of_stranger or any(name in " ".join(errors) for name in names)
    return "" if named else f"{case}: names nothing: {errors}"


def cases(prepared: Prepared, names: Sequence[str], aside: Path, seed: int) -> Iterator[Case]:
    """Every file with every kind of damage."""
    draw = random.Random(seed)
    for name in names:
        for file in prepared.files(name, aside):
            for kind in KINDS:
                for _ in range(FLIPS if kind == "flip" else 1):
                    yield Case(name, file, kind, draw.randrange(2**31))


def attack_all(
    prepared: Prepared,
    aside: Path,
    names: Sequence[str],
    n: int,
    seed: int,
    say: Callable[[str], object] = lambda line: None,
) -> Outcome:
    """`n` of all cases of some commands, shared evenly among them."""
    draw, found = random.Random(seed), []
    for name in names:
        each = list(cases(prepared, [name], aside, seed))
        draw.shuffle(each)
        found.append(each)
    chosen = [case for turn in zip_longest(*found) for case in turn if case is not None][:n]
    outcome = Outcome()
    for case in sorted(chosen):
        problem = try_case(case, prepared, aside)
        outcome.add(not problem, problem)
        if problem:
            say(problem)
    return outcome


def check(n: int, seed: int) -> Outcome:
    """`n` faults of the inputs of all commands."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "aside").mkdir()
        prepared = Prepared(Bench(root / "bench", tiny_model(root)))
        return attack_all(prepared, root / "aside", list(ATTACKED), n, seed)


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT)]
    root = Path(sys.argv[1]).resolve()
    made = Prepared(Bench(root / "bench", tiny_model(root)))
    (root / "aside").mkdir()
    for name in sys.argv[3:] or ATTACKED:
        result = attack_all(
            made, root / "aside", [name], int(sys.argv[2]), 0, lambda line: print(line, flush=True)
        )
        print(f"{name}: {result.held} of {result.tried} held", flush=True)
