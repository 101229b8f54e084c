"""Every disk operation of every command fails once, with every errno: the engine of R6.

`attack` runs a command on a disk that fails at its k-th operation, and says what was wrong with how that ended.
`everything` goes through all of them, as `python -m tests.reliability.full_disk FOLDER [COMMAND ...]` does; the test
suite takes a few.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tests.reliability.faulty_disk import ERRORS, FaultyDisk

ROOT = Path(__file__).parents[2]
RECIPE = """
model: {{name: {model}, dtype: float32}}
adapter: {{method: lora, rank: 2, targets: [q_proj]}}
optimizer: {{method: adamw, lr: 0.01}}
schedule: constant
data:
  train: {{source: {data}/train.jsonl, limit: 8}}
  eval: {{source: {data}/test.jsonl, limit: 2}}
  format: {{method: prompt_completion, render: chat}}
train: {{max_steps: 2, batch_size: 2, max_length: 160, save_every: 1, eval_every: 2, device: cpu}}
eval: {{tasks: [loss]}}
"""
CURVE = ("--curve", "2") if find_spec("matplotlib") else ()
PICTURES = ("--png", "curves") if find_spec("matplotlib") else ()
IN_BITS = ("merge", "run", "--out", "out", "--requantize", "nf4")
GENERATOR = "{method: icm_lora, latent: 2, channels: [2], epochs: 2, rows: 1}"
RATES = ("--lr-grid", "1e-3")
FIND_LR = ("find-lr", "recipe.yaml", "--steps", "20", "--from", "1e-4", "--to", "1e-1")
LEFTOVER = re.compile(r"(\.[0-9a-f]{8})?\.tmp$|\.old$")
TIMED = ("seconds", "tokens_per_second", "memory_bytes", "peak_memory_bytes")
# Names whose content says when or how long, and is the same but for that.
COMPARED = re.compile(
    r"\.(safetensors|gguf|jinja|yaml|csv|html|png)$|config\.json|state\.json|Modelfile|tokenizer"
)


@dataclass(frozen=True)
class Command:
    """One command that writes.

    Attributes:
        words: what follows `lrft`; paths are relative to the folder that it is called in.
        trained: it needs the run `run`, trained to its end.
        halfway: the run is there with its first checkpoint alone, and is gone on with.
        told: what is printed all the same when the files cannot be written.
        compared: paths of which the bytes are compared with those of a whole disk.
        typed: lines that it reads.
        recipe: what the run was trained by.
        moves: it needs `base` and `tuned`, two models, and `difference`, what one has beyond the other.
        fitted: it needs `generator`, of adapters.
    """

    words: tuple[str, ...]
    trained: bool = True
    halfway: bool = False
    told: str = ""
    compared: str = ""
    typed: str = ""
    recipe: str = "recipe.yaml"
    moves: bool = False
    fitted: bool = False


COMMANDS = {
    "train": Command(("train", "recipe.yaml", "--out", "run"), trained=False),
    "train-offload": Command(
        ("train", "recipe.yaml", "--out", "run", "offload={weights: disk, optimizer: disk}"), trained=False
    ),
    "resume": Command(("train", "run", "--resume"), halfway=True),
    "federate": Command(
        (
            *("federate", "recipe.yaml", "--out", "run", "train.max_steps=null"),
            "federate={clients: 2, rounds: 2, local_steps: 1, partition: even, aggregate: fed_stale}",
        ),
        trained=False,
    ),
    "eval": Command(("eval", "run"), told="loss", compared="run/eval"),
    "posterior": Command(("posterior", "run"), recipe="choices.yaml"),
    "merge": Command(("merge", "run", "--out", "out")),
    "merge-add": Command(("merge", "run", "--add", "run", "--out", "out")),
    "combine": Command(("combine", "run", "run", "--method", "svd", *CURVE, "--out", "out")),
    "generate-adapter-fit": Command(
        ("generate-adapter", "fit", "run", "--method", GENERATOR, "--out", "out")
    ),
    "generate-adapter-draw": Command(
        ("generate-adapter", "draw", "generator", "recipe.yaml", "--judge", "run", "--out", "out"),
        fitted=True,
    ),
    **({"merge-in-bits": Command((*IN_BITS, "--keep-rank", "2"))} if find_spec("bitsandbytes") else {}),
    "transfer": Command(
        (
            *("transfer", "run", "--to", "recipe.yaml", "--out", "moved", "--shots", "2", "--contrast", "6"),
            *("--candidates", "6", "--threshold", "0", "--max-new-tokens", "4", "--match", "text"),
            *("--judge", "train.max_steps=1", "--judge", "adapter.rank=2", "--judge", "data.split=2"),
        ),
        compared=r"moved/run/adapter/.*safetensors",
    ),
    "delta-diff": Command(("delta", "diff", "base", "tuned", "--out", "out"), trained=False, moves=True),
    "delta-apply": Command(
        ("delta", "apply", "difference", "base", "--out", "out"), trained=False, moves=True
    ),
    "delta-compress": Command(
        ("delta", "compress", "difference", "--ratio", "0.5", "--out", "out"), trained=False, moves=True
    ),
    "chat": Command(
        ("chat", "run", "--max-new-tokens", "2"),
        typed="Hello\n/save talk.jsonl\nAnd you?\n/save talk.jsonl\n",
    ),
    "generate": Command(
        ("generate", "run", "prompts.txt", "--out", "answers.jsonl", "--max-new-tokens", "2")
    ),
    "data-augment": Command(
        (
            "data",
            "augment",
            "recipe.yaml",
            "--prompt",
            "ask.txt",
            "--out",
            "more.jsonl",
            "--max-new-tokens",
            "2",
        ),
        trained=False,
    ),
    "data-select": Command(
        ("data", "select", "recipe.yaml", "--method", "perplexity", "--budget", "2", "--out", "chosen.jsonl"),
        trained=False,
    ),
    "data-rank": Command(
        (
            *("data", "rank", "recipe.yaml", "data.train.limit=24", "--method", "textemb"),
            *("--source", "choices.yaml", "--out", "order.json"),
        ),
        trained=False,
    ),
    "choose": Command(("choose", "many.yaml", "--shots", "0", "--out", "out"), trained=False),
    "report": Command(("report", "run", "--out", "report.html", *PICTURES)),
    "report-inspect": Command(("report", "run", "--inspect", "--out", "report.html")),
    "inspect": Command(("inspect", "run")),
    # What goes on has no profile, which the state of a checkpoint tells; one that was not removed harms nobody.
    "profile": Command(
        ("train", "recipe.yaml", "--out", "run", "--profile", "train.max_steps=6"),
        trained=False,
        compared="run/(adapter|last|best)/",
    ),
    # Checkpoints that cannot be removed take room and harm nobody; tables say how long a run took.
    "sweep": Command(
        ("sweep", "recipe.yaml", "adapter.rank=1,2", "--out", "out"),
        trained=False,
        compared="out/runs/.*/last/",
    ),
    "search": Command(
        ("search", "recipe.yaml", "--space", "space.yaml", "--budget", "2", "--out", "out"),
        trained=False,
        compared="out/runs/.*/last/",
    ),
    "compare": Command(
        ("compare", "recipe.yaml", "other.yaml", "--match", "steps", *RATES, "--seeds", "1", "--out", "out"),
        trained=False,
        compared="out/runs/.*/last/",
    ),
    "reproduce": Command(("reproduce", "dora", "--out", "out"), trained=False),
    **({"find-lr": Command((*FIND_LR, "--plot", "rates.png"), trained=False)} if PICTURES else {}),
    "recipes": Command(("recipes", "cp", "quickstart", "mine.yaml"), trained=False),
    "export-merged": Command(("export", "run", "--for", "gguf", "--merged", "--out", "out")),
    **{
        f"export-{target}": Command(("export", "run", "--for", target, "--out", "out", *more))
        for target, more in {
            "peft": (),
            "lora": (),
            "vllm": (),
            "gguf": (),
            "ollama": ("--from", "base"),
        }.items()
    },
}


@dataclass(frozen=True)
class Called:
    """How a command ended."""

    code: int
    out: str
    err: str
    raised: str = ""


class Bench:
    """What the commands start from and what they leave on a whole disk, made once in a folder.

    Args:
        model: a small model to train on.
    """

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model = folder, model
        self.start = folder / "start"
        self.start.mkdir(parents=True)
        data = ROOT / "recipes" / "data" / "quickstart"
        (self.start / "recipe.yaml").write_text(RECIPE.format(model=model, data=data))
        choices = RECIPE.format(model=model, data=".").replace(
            "method: prompt_completion", "method: instruction"
        )
        (self.start / "choices.yaml").write_text(choices.replace("./t", "choices-t"))
        many = (
            choices.replace("./t", "many-t").replace("limit: 8", "limit: 64").replace("limit: 2", "limit: 20")
        )
        (self.start / "many.yaml").write_text(many)
        for name, trains, ends in (("choices", 8, 10), ("many", 64, 84)):
            for split, numbers in (("train", range(trains)), ("test", range(trains, ends))):
                lines = "".join(json.dumps(_choice(k)) + "\n" for k in numbers)
                (self.start / f"{name}-{split}.jsonl").write_text(lines)
        (self.start / "other.yaml").write_text("extends: recipe.yaml\nadapter: {rank: 1}\n")
        (self.start / "space.yaml").write_text("adapter.rank: [1, 2]\n")
        (self.start / "prompts.txt").write_text("How many apples?\nAnd pears?\n")
        (self.start / "verify.txt").write_text("It printed [{output}]. Right?\n")
        (self.start / "ask.txt").write_text("Say otherwise: {prompt}\n")
        self._whole: dict[str, tuple[dict[str, bytes], int]] = {}

    def place(self, name: str, label: str) -> Path:
        """A folder to call a command in, with what it needs."""
        command, place = COMMANDS[name], self.folder / f"{name}-{label}"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.start, place)
        if command.trained:
            shutil.copytree(self._trained(command.recipe), place / "run")
        if command.moves:
            shutil.copytree(self._moved(), place, dirs_exist_ok=True)
        if command.fitted:
            shutil.copytree(self._fitted(), place / "generator")
        if command.halfway:
            for path in ("checkpoints/step-2", "adapter", "last", "best", "result.json"):
                _remove(place / "run" / path)
        return place

    def _trained(self, recipe: str) -> Path:
        run = self.folder / f"trained-{recipe}" / "run"
        if not run.exists():
            shutil.copytree(self.start, run.parent)
            ended = call(run.parent, ("train", recipe, "--out", "run"))
            assert ended.code == 0, ended
        return run

    def _moved(self) -> Path:
        """A folder with a base, the trained run merged into it, and what that has beyond the base."""
        place = self.folder / "moved"
        if not place.exists():
            place.mkdir()
            shutil.copytree(self.model, place / "base")
            for words in (
                ("merge", str(self._trained("recipe.yaml")), "--out", "tuned"),
                ("delta", "diff", "base", "tuned", "--out", "difference"),
            ):
                ended = call(place, words)
                assert ended.code == 0, ended
        return place

    def _fitted(self) -> Path:
        """A generator of the one task that there is."""
        place = self.folder / "fitted" / "generator"
        if not place.exists():
            run = str(self._trained("recipe.yaml"))
            words = ("generate-adapter", "fit", run, "--method", GENERATOR, "--out", str(place))
            ended = call(self.folder, words)
            assert ended.code == 0, ended
        return place

    def whole(self, name: str) -> tuple[dict[str, bytes], int]:
        """File -> content that a command leaves on a whole disk, and how many operations it asks of the disk."""
        if name not in self._whole:
            place = self.place(name, "whole")
            disk = FaultyDisk(place, libraries=True)
            with disk.at_work():
                ended = call(place, COMMANDS[name].words, COMMANDS[name].typed)
            assert ended.code == 0, ended
            self._whole[name] = contents(place), len(disk.done)
        return self._whole[name]


def _choice(k: int) -> dict[str, str]:
    answer = "ab"[k % 2]
    asked = f"Is {k} odd?\n\nA: no B: yes\n\nAnswer format: a/b"
    return {"instruction": asked, "input": "", "output": f"the answer is {answer}", "answer": answer}


def attack(bench: Bench, name: str, at: int, number: int, stays: bool) -> list[str]:
    """What is wrong with how a command of `COMMANDS` meets a disk whose operation `at` fails; empty where nothing is.

    Looked at: it ends with an exit code and one sentence that has the system's reason; nothing half-written is left;
    every checkpoint but one that was being written verifies; what was scored is told; and the same command on a whole
    disk, with --resume where a run has begun, then leaves the same bytes as one that never met a fault.

    Args:
        at: from 1 to the number of operations (`bench.whole(name)[1]`).
        number: the errno.
        stays: whether everything after it fails too.
    """
    command, place = COMMANDS[name], bench.place(name, "broken")
    expected, _ = bench.whole(name)
    disk = FaultyDisk(place, at, number, stays, libraries=True)
    with disk.at_work():
        ended = call(place, command.words, command.typed)
    wrong = [] if not disk.failed else list(_ending(ended, command, number, _is_optional(disk)))
    wrong += [f"left {path}" for path in contents(place, LEFTOVER)]
    wrong += list(_checkpoints(place / "run" / "checkpoints"))
    if ended.code:
        words = command.words
        if (
            words[0] in ("train", "federate")
            and not command.trained
            and (place / "run" / "recipe.yaml").exists()
        ):
            # Less may be left than a profile records.
            words = (*(word for word in words if word != "--profile"), "--resume")
        again = call(place, words, command.typed)
        if again.code or again.raised:
            wrong.append(f"the same command then ended in {again}")
    found = contents(place)
    differing = sorted(
        file for file in expected.keys() | found.keys() if expected.get(file) != found.get(file)
    )
    wrong += [f"other bytes in {file}" for file in differing if re.match(command.compared, file)]
    return [f"{name}, {os.strerror(number)} at {at} ({disk.done[at - 1 : at]}): {line}" for line in wrong]


def _ending(ended: Called, command: Command, number: int, optional: bool) -> Iterator[str]:
    if ended.raised:
        yield f"raised {ended.raised}"
        return
    if optional and ended.code == 0:
        return
    errors = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    if ended.code in (0, None) or len(errors) != 1:
        yield f"ended in {ended}"
    elif os.strerror(number) not in errors[0]:
        yield f"does not say why: {errors[0]}"
    if command.told and command.told not in ended.out:
        yield "does not tell what was found"


def _is_optional(disk: FaultyDisk) -> bool:
    """Whether what failed has another way: a second name is a copy elsewhere, an exchange two renames."""
    return disk.done[disk.at - 1].split()[0] in ("link", "exchange") if disk.at else True


def _checkpoints(folder: Path) -> Iterator[str]:
    from lrft.training import checkpoint_folder

    for step in checkpoint_folder.steps_in(folder):
        if problem := checkpoint_folder.fault(step):
            yield f"{step.name}: {problem}"


def call(place: Path, words: Sequence[str], typed: str = "") -> Called:
    """`lrft WORDS` in a folder, in this process; `typed` is what it is given to read."""
    from lrft.cli import main

    out, err, raised, code = io.StringIO(), io.StringIO(), "", 0
    arguments, sys.argv = sys.argv, ["lrft", *words]
    stdin, sys.stdin = sys.stdin, io.StringIO(typed)
    try:
        with chdir(place), redirect_stdout(out), redirect_stderr(err), _ended(words[0] == "transfer"):
            main()
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else 1 if stopped.code else 0
    except Exception as error:
        raised, code = f"{type(error).__name__}: {error}", 1
    finally:
        sys.argv, sys.stdin = arguments, stdin
    return Called(code, out.getvalue(), err.getvalue(), raised)


@contextmanager
def _ended(all_of_them: bool) -> Iterator[None]:
    """Answers of random models, which rarely end, are two tokens, where a command has no use for what is cut off."""
    from lrft.evaluation.answering import Given
    from tests.training.transfer_struck import all_stopped

    def two_tokens(self: Given, row: int, tokens: list[int], stopped: bool) -> None:
        all_stopped(self, row, [300 + row, 350 + row], stopped)

    before = Given.__init__
    if all_of_them:
        setattr(Given, "__init__", two_tokens)  # noqa: B010
    try:
        yield
    finally:
        setattr(Given, "__init__", before)  # noqa: B010


def contents(place: Path, pattern: re.Pattern[str] = COMPARED) -> dict[str, bytes]:
    """File below a folder -> content, of names that match."""
    found = {}
    for path in sorted(place.rglob("*")):
        name = path.relative_to(place).as_posix()
        if pattern.search(path.name):
            found[name] = path.read_bytes() if path.is_file() else b""
    lines = place / "run" / "metrics.jsonl"
    if pattern is COMPARED and lines.is_file():
        found["run/metrics.jsonl"] = json.dumps(
            [
                {key: value for key, value in json.loads(line).items() if key not in TIMED}
                for line in lines.read_text().splitlines()
            ]
        ).encode()
    return found


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def everything(
    bench: Bench, names: Sequence[str] = tuple(COMMANDS), say: Callable[[str], object] = print
) -> tuple[int, list[str]]:
    """Attack each operation of each command with each error, once and for good; how many attacks, and what is wrong."""
    count, wrong = 0, []
    for name in names:
        operations = bench.whole(name)[1]
        for at in range(1, operations + 1):
            for number in ERRORS:
                for stays in (False, True):
                    count += 1
                    wrong += attack(bench, name, at, number, stays)
        say(f"{name}: {operations} operations, {len(wrong)} wrong so far")
    return count, wrong


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
    import make_tiny_model

    root = Path(sys.argv[1]).resolve()
    made = Bench(root / "bench", make_tiny_model.make(root / "model"))
    total, found = everything(made, sys.argv[2:] or tuple(COMMANDS))
    print("\n".join(found) or f"{total} attacks, nothing wrong")
    sys.exit(bool(found))
