"""`lrft data augment`: rows that a model writes from those of a recipe, in a file that the recipe's format reads."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from lrft.api.asking.writer import find_writer
from lrft.api.data.written import check_name, write_out
from lrft.build.dataset import read_renderer
from lrft.build.guess import with_format
from lrft.build.rows import training_rows
from lrft.core import stop
from lrft.data.example import Row
from lrft.data.rewrite import Refused, Rewriting
from lrft.data.rows import Rows, placed
from lrft.data.tokenize import Renderer
from lrft.evaluation.answers_file import AnswerLine, AnswersFile
from lrft.evaluation.progress import EvaluationBar
from lrft.evaluation.sampling import Sampling, check_new_tokens
from lrft.files.read import read_text
from lrft.recipe.load import LoadedRecipe, as_loaded
from lrft.recipe.schema import Recipe
from lrft.registry.errors import DamagedFile, UsageError
from lrft.registry.json import Json


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
        chosen, _, rewriting = rewriting_of(recipe, overrides, prompt, into, trust_remote_code)
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


def rewriting_of(
    recipe: LoadedRecipe | Path | str,
    overrides: Sequence[str],
    prompt: Path | str,
    into: str | None,
    trusted: bool,
) -> tuple[Recipe, Renderer, Rewriting]:
    """A recipe with its format, what renders its rows, and how an answer becomes one of them.

    Raises:
        UsageError: the words of `prompt` or the column `into` mean nothing.
    """
    chosen = with_format(as_loaded(recipe, overrides)).recipe
    renderer = read_renderer(chosen, trusted).renderer
    rewriting = Rewriting(read_template(Path(prompt)), into, renderer.format)
    rewriting.check()
    return chosen, renderer, rewriting


def check_words(out: Path, times: int, sampling: Sampling, max_new_tokens: int) -> None:
    """Refuse what cannot be written or drawn.

    Raises:
        UsageError: names the option.
    """
    sampling.check()
    check_name(out)
    check_new_tokens(max_new_tokens)
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
    """The text of a file that an option names, without the marks that editors put around it.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return read_text(path).removeprefix("\ufeff").rstrip("\r\n")
    except DamagedFile as error:
        raise UsageError(
            f"{name} {path}: cannot be read as a text ({error.problem}); name a UTF-8 file"
        ) from None


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
    write_out(path, "".join(lines))
    return len(lines), dict(sorted(refused.items()))
