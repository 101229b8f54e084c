"""`lrft data augment`: rows that a model writes from those of a recipe, in a file that the recipe's format reads."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

from lrft.api.asking.generate import Generated, write_answers
from lrft.api.opening.open_run import open_run, sample_row
from lrft.build.dataset import read_renderer
from lrft.build.guess import with_format
from lrft.build.job import subject
from lrft.build.rows import training_rows
from lrft.core import stop
from lrft.data.encode import placed
from lrft.data.example import Example, Message, Row
from lrft.data.prompts import Asker
from lrft.data.rewrite import Refused, Rewriting
from lrft.data.rows import Rows
from lrft.evaluation.answers_file import AnswerLine, AnswersFile
from lrft.evaluation.progress import EvaluationBar
from lrft.evaluation.sampling import Sampling
from lrft.evaluation.subject import Progress, Subject
from lrft.files.read import read_text
from lrft.files.write import holds_other, write_file
from lrft.model.load import load_model
from lrft.recipe.load import LoadedRecipe, as_loaded
from lrft.recipe.schema import Recipe
from lrft.registry.errors import DamagedFile, UsageError
from lrft.registry.json import Json
from lrft.training.device import make_accelerator
from lrft.training.folder import find


class Augmented(TypedDict):
    """What a call did.

    Attributes:
        rows: in `out`; `refused` answers made none, by what was wrong with them.
        answers: all of them, in a file of their own; `before` were there.
    """

    out: str
    rows: int
    refused: dict[str, int]
    answers: str
    before: int


@dataclass(frozen=True)
class Writer:
    """Who is asked.

    Attributes:
        asker: None for a base model, which is asked as its chat template asks, or in plain text.
        name: what it is called in the rows.
        about: what decides its answers.
    """

    subject: Subject
    asker: Asker | None
    name: str
    about: Mapping[str, Json]

    def turn_ids(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of a conversation whose last message is a question."""
        example = Example(messages=tuple(messages))
        return self.subject.renderer.asked(example) if self.asker is None else self.asker.ids(example)

    @property
    def converses(self) -> bool:
        """Whether a conversation can be put to it as it was taught to hold one."""
        if self.asker is not None:
            return bool(self.asker.text("").messages)
        return bool(self.subject.renderer.tokenizer.chat_template)

    def ids(self, question: str) -> list[int]:
        """The tokens of a question."""
        if self.asker is not None:
            return self.asker.ids(self.asker.text(question))
        renderer = self.subject.renderer
        if self.takes_messages:
            return renderer.asked(Example(messages=({"role": "user", "content": question},)))
        return renderer.asked(Example(prompt=question))

    @property
    def takes_messages(self) -> bool:
        """Whether a base model is asked by a chat template."""
        return bool(self.subject.renderer.tokenizer.chat_template)

    def answers(
        self, rows: Rows, ids: list[list[int]], file: AnswersFile, max_new_tokens: int, sampling: Sampling
    ) -> Generated:
        """Answer every question into a file, from where that ends."""
        about: dict[str, Json] = {
            **self.about,
            "prompts_sha256": hashlib.sha256(repr(ids).encode()).hexdigest(),
            "max_new_tokens": max_new_tokens,
            "sampling": asdict(sampling),
            "batch_tokens": self.subject.batch_tokens,
        }
        return write_answers(self.subject, rows, ids, file, about, max_new_tokens, sampling, None)


def augment_rows(
    recipe: LoadedRecipe | Path | str,
    prompt: Path | str,
    out: Path | str,
    into: str | None = None,
    run: Path | str | None = None,
    times: int = 1,
    sampling: Sampling | None = None,
    max_new_tokens: int = 256,
    *,
    overrides: Sequence[str] = (),
    trust_remote_code: bool = False,
) -> Augmented:
    """Ask a model about every training row, and write what it answers as new rows, each with a column `augmented`.

    All answers go into `out` with `.answers` before its ending; killed, the same command goes on there, and `out` is
    written when it has the last.

    Args:
        prompt: a file with the question, in which `{question}` is the column `question`.
        out: a .jsonl file.
        into: the column whose text an answer replaces; by default an answer is a row itself, as a JSON object.
        run: who is asked, as it was taught to be; by default the recipe's base model.
        times: answers to each row, drawn one after the other.

    Raises:
        UsageError: words that mean nothing, or `out` holds something else.
        DataError: the rows cannot be read, or lack a column.
    """
    path, sampling = Path(out), sampling or Sampling()
    check_words(path, times, sampling, max_new_tokens)
    file = AnswersFile(path.with_suffix(".answers.jsonl"), AnswerLine)

    def kept() -> str:
        return f"{file.written} answers are in {file.path}; the same command goes on"

    with stop.listening(kept), EvaluationBar() as show:
        chosen = with_format(as_loaded(recipe, overrides)).recipe
        renderer = read_renderer(chosen, trust_remote_code).renderer
        rewriting = Rewriting(read_template(Path(prompt)), into, renderer.format)
        rewriting.check()
        rows, questions = ask_rows(training_rows(chosen), rewriting, times)
        writer = find_writer(chosen, run, trust_remote_code, show)
        ids = [writer.ids(question) for question in questions]
        done = writer.answers(rows, ids, file, max_new_tokens, sampling)
        made = _rows_of(file.lines(), rewriting, rows, times, writer.name)
        count, refused = write_rows(path, made)
    return {
        "out": str(path),
        "rows": count,
        "refused": refused,
        "answers": done["out"],
        "before": done["before"],
    }


def check_words(out: Path, times: int, sampling: Sampling, max_new_tokens: int) -> None:
    """Refuse what cannot be written or drawn.

    Raises:
        UsageError: names the option.
    """
    sampling.check()
    if out.suffix != ".jsonl":
        raise UsageError(f"--out {out}: rows are JSON, one a line; give a name that ends in .jsonl")
    if max_new_tokens < 1:
        raise UsageError(f"--max-new-tokens {max_new_tokens}: at least one token has to be generated")
    if times > 1 and sampling.greedy:
        raise UsageError(
            f"--times {times}: at temperature 0 every answer to a row is the same; add --temperature"
        )


def ask_rows(rows: Rows, rewriting: Rewriting, times: int) -> tuple[Rows, list[str]]:
    """Every row as often as it is asked about, and the questions."""
    questions: list[str] = []
    for index, row in enumerate(rows):
        stop.poll()
        with placed(rows, index):
            questions += [rewriting.question(row)] * times
    return rows.chosen([k for k in range(len(rows)) for _ in range(times)]), questions


def read_template(path: Path, name: str = "--prompt") -> str:
    """The text of a file that an option names.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return read_text(path).rstrip("\n")
    except DamagedFile as error:
        raise UsageError(
            f"{name} {path}: cannot be read as a text ({error.problem}); name a UTF-8 file"
        ) from None


def find_writer(recipe: Recipe, run: Path | str | None, trusted: bool, progress: Progress) -> Writer:
    """The base of the recipe, or a run."""
    if run is not None:
        folder = find(run)
        folder.trusted = trusted
        its, text, adaptation = open_run(folder)
        assert folder.opened is not None, "open_run opens one"
        target = subject(its, text, adaptation.model, progress)
        about: dict[str, Json] = {"checkpoint_sha256": folder.opened.manifest_sha256}
        return Writer(target, Asker(text.renderer, sample_row(its, text)), folder.path.name, about)
    device = make_accelerator(recipe.train.device, recipe.model.dtype).device
    model = load_model(recipe.model, device=device, trust_remote_code=trusted, seed=recipe.train.seed)
    model.hf.to(device)
    model.eval()
    target = subject(recipe, read_renderer(recipe, trusted), model, progress)
    return Writer(target, None, recipe.model.name, {"base": model.fingerprint})


def _rows_of(
    answers: Iterable[Mapping[str, Any]], rewriting: Rewriting, rows: Rows, times: int, by: str
) -> Iterator[Row | Refused]:
    for index, answer in enumerate(answers):
        about: dict[str, Json] = {"from": rows.where(index), "by": by, "draw": index % times}
        yield rewriting.written(rows[index], answer["output"], about) if answer["stopped"] else "cut off"


def write_rows(path: Path, made: Iterable[Row | Refused]) -> tuple[int, dict[str, int]]:
    """Write the rows that answers make; how many, and how many make none, by what was wrong.

    Raises:
        UsageError: the file holds something else.
    """
    lines: list[str] = []
    refused = Counter[str]()
    for row in made:
        if isinstance(row, str):
            refused[row] += 1
        else:
            lines.append(json.dumps(row, ensure_ascii=False, default=str) + "\n")
    content = "".join(lines)
    if holds_other(path, content):
        raise UsageError(
            f"--out {path}: is there already and holds other rows; give another name, or remove it"
        )
    with stop.held():
        write_file(path, content, f"--out {path}")
    return len(lines), dict(sorted(refused.items()))
