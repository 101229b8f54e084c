"""HumanEval: functions from their docstrings; run only where the recipe allows it."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

from lrft.core.notes import say
from lrft.data.example import Row
from lrft.data.prompts import Asker
from lrft.evaluation.confined import Limits, cuts_network, passes
from lrft.evaluation.divide import divided
from lrft.evaluation.generate import generate
from lrft.evaluation.subject import Subject
from lrft.evaluation.tasks._task import OfRows, TaskResult, each, share
from lrft.registry.axes import TASKS
from lrft.registry.config import Field
from lrft.registry.errors import DataError
from lrft.registry.json import Json

# A function that goes on ends before these (Chen et al.).
ENDS = re.compile(r"\n(?=class|def|#|if|print)")
FENCE = re.compile(r"```(?:[Pp]ython|py)?[ \t]*\n(.*?)(?:\n```|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Problem:
    """What a row asks, and what tests the answer."""

    prompt: str
    entry_point: str
    test: str


@TASKS.register
class HumanEval(OfRows):
    """The share of greedy programs that pass their tests; without leave to run code, that of programs that could.

        pass_at_1 = mean over rows of [the program runs `test` and `check(entry_point)` to the end]     (`allow_code`)
        parses    = mean over rows of [the program is Python and defines `entry_point`]

    Prompt: `humaneval-1`: the column `prompt`, the beginning of a function, asked as a text in the recipe's format, or
    in the task's own `format`, zero-shot. Rows have `prompt`, `entry_point` and `test`; they are those of `data.eval`,
    or the task's own `data`. At most `max_new_tokens` tokens are generated.
    Score: the program is the output's first fenced block that defines the function, or the output where it defines it,
    after what the prompt has before the function; else the prompt with the output, up to a line that begins with class,
    def, #, if or print. Nothing is run unless `allow_code: true`: then each program is, in a process of its own, with
    `seconds` and `memory_mib`, files of 1 MiB in a folder that is deleted, and no network where the system lets users
    have namespaces (`network` among the settings says so). This confines mistakes, not attacks: a program can read what
    the user can. `unstopped` is the share of outputs that reached `max_new_tokens` without a stop token.
    Source: Chen et al., "Evaluating Large Language Models Trained on Code", 2021, arXiv 2107.03374, with one greedy
    sample a problem.
    """

    aliases = {
        "openai_humaneval pass_at_1": "tasks: [{method: humaneval, allow_code: true}]",
    }

    version = "humaneval-1"
    better = {"pass_at_1": "higher", "parses": "higher", "unstopped": "lower"}
    right_is = "pass_at_1"

    class Config(OfRows.Config):
        max_new_tokens: int = Field(512, gt=0, description="longest answer")
        allow_code: bool = Field(False, description="run the programs that the model writes, confined")
        seconds: float = Field(5.0, gt=0, description="time for a program and its tests")
        memory_mib: int = Field(1024, ge=64, description="addresses that a program may use, in MiB")

    config: Config

    def run(self, subject: Subject, limit: int | None) -> TaskResult:
        """Generate, put programs together, and run them where that is allowed."""
        rows = self.rows(subject, limit)
        problems = each(rows, read_problem)
        renderer = self.renderer(subject)
        asker, features = Asker(renderer, self.sample(subject)), each(rows, renderer.features.of)
        prompts = each(rows, lambda row: asker.ids(asker.text(str(row["prompt"]))))
        limit_tokens = self.config.max_new_tokens
        tokens = generate(subject, prompts, limit_tokens, what=self.name, where=rows.where, features=features)
        outputs = [subject.decode(one) for one in tokens]
        programs = [program(p, output) for p, output in zip(problems, outputs, strict=True)]
        stands = [defines(text, p.entry_point) for text, p in zip(programs, problems, strict=True)]
        ran = self.tested(subject, problems, programs) if self.config.allow_code else None
        metrics = {
            **({} if ran is None else share("pass_at_1", ran)),
            **share("parses", stands),
            **share("unstopped", [len(one) == limit_tokens for one in tokens]),
        }
        samples: list[dict[str, Json]] = [
            {
                "prompt": str(subject.tokenizer.decode(prompt)),
                "output": output,
                "reference": str(row.get("canonical_solution", "")),
                "correct": right,
                "program": text,
            }
            for row, prompt, output, text, right in zip(
                rows, prompts, outputs, programs, ran or stands, strict=True
            )
        ]
        if ran is None:
            return self.result(subject, rows, metrics, samples)
        return self.result(subject, rows, metrics, samples, network="none" if cuts_network() else "open")

    def sample(self, subject: Subject) -> Row | None:
        """A row of the recipe, which shows whether its answers are thought for; None where there is none to see."""
        apart = self.config.data is not None and self.config.format is None
        return subject.rows[0] if apart and subject.rows is not None else None

    def tested(self, subject: Subject, problems: list[Problem], programs: list[str]) -> list[bool]:
        """Whether each program passes its tests."""
        if not cuts_network():
            say(
                "humaneval: this system gives no namespaces to users, so the programs could reach the network"
            )
        limits = Limits(self.config.seconds, self.config.memory_mib * 2**20)
        pairs = list(zip(problems, programs, strict=True))

        def run_one(pair: tuple[Problem, str]) -> bool:
            problem, text = pair
            tests = f"{text}\n\n{problem.test}\n\ncheck({problem.entry_point})\n"
            return defines(text, problem.entry_point) and passes(tests, limits)

        watch = subject.watch("running programs", len(pairs))
        return divided(pairs, run_one, watch, lambda pair: 1, subject.team)


def read_problem(row: Row) -> Problem:
    """The problem of a row.

    Raises:
        DataError: a column is missing, or the entry point is no name.
    """
    texts = {key: row.get(key) for key in ("prompt", "entry_point", "test")}
    missing = [key for key, text in texts.items() if not isinstance(text, str) or not text]
    if missing:
        raise DataError(f"{missing[0]} is missing; humaneval reads prompt, entry_point and test")
    problem = Problem(**{key: str(text) for key, text in texts.items()})
    if not problem.entry_point.isidentifier():
        raise DataError(f"entry_point {problem.entry_point!r} is no name of a function")
    return problem


def program(problem: Problem, output: str) -> str:
    """The program that an output makes of the problem."""
    head = re.compile(rf"^[ \t]*(?:async )?def {problem.entry_point}\b", re.MULTILINE)
    found = head.search(problem.prompt)
    before = problem.prompt[: found.start()] if found else ""
    for block in (*FENCE.findall(output), output):
        if head.search(block):
            return f"{before}{block}"
    return problem.prompt + ENDS.split(output, maxsplit=1)[0]


def defines(text: str, name: str) -> bool:
    """Whether a text is Python, with a function of that name; nothing of it is run."""
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name for node in body
    )
