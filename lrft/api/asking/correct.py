"""`lrft data augment --verify`: solutions that correct themselves, by programs that a model writes, runs and judges."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lrft.api.asking.augment import (
    Augmented,
    ask_rows,
    check_words,
    read_template,
    rewriting_of,
    write_rows,
)
from lrft.api.asking.writer import Writer, find_writer
from lrft.build.rows import training_rows
from lrft.core import stop
from lrft.core.notes import say
from lrft.data.corrected import Stage, find_answer, find_program, is_right, trajectory
from lrft.data.example import Message, Row
from lrft.data.rewrite import Refused, Rewriting
from lrft.data.rows import Rows
from lrft.evaluation.answers_file import AnswerLine, AnswersFile
from lrft.evaluation.confined import Limits, cuts_network, run_program
from lrft.evaluation.progress import EvaluationBar
from lrft.evaluation.sampling import Sampling
from lrft.recipe.load import LoadedRecipe
from lrft.registry.errors import UsageError
from lrft.registry.json import Json

PRINTED = "{output}"  # in the question after a program, what came of it
AGAIN = "That was not right. Write the corrected program."
LIMITS = Limits(5.0, 2**30)
STAGES = 3  # programs of a solution


@dataclass
class Attempt:
    """A solution on its way: what was said, its stages, and why it ended without an answer, if it did."""

    messages: list[Message]
    stages: list[Stage] = field(default_factory=list)
    answer: str | None = None
    refused: Refused = ""

    @property
    def open(self) -> bool:
        """Whether another stage is to follow."""
        return self.answer is None and not self.refused


def correct_rows(
    recipe: LoadedRecipe | Path | str,
    prompt: Path | str,
    verify: Path | str,
    out: Path | str,
    into: str,
    run: Path | str | None = None,
    times: int = 1,
    sampling: Sampling | None = None,
    max_new_tokens: int = 256,
    stages: int = STAGES,
    *,
    overrides: Sequence[str] = (),
    trust_remote_code: bool = False,
) -> Augmented:
    """Let a model solve every training row by programs, judge what they print, and correct them: CoSC.

    A stage asks for a program, runs it in a process of its own with little time, memory and files
    (`lrft.evaluation.confined`), tells what it printed, and asks whether that is right. A line `Answer: ...` ends it;
    without one the next stage asks for a corrected program. What is written is all stages as one text in the place of
    the row's answer, where the answer is that of the row; everything else is counted. Each part of a stage is a file
    beside `out`, gone on with after a kill. Calling this runs programs that the model writes.

    Source: Gao et al., "Embedding Self-Correction as an Inherent Ability in Large Language Models for Enhanced
    Mathematical Reasoning", 2024, arXiv 2410.10735, of which the abstract was read: the stages and their parts.
    Departures: settled here: what is asked is the caller's, who may put examples into it; `Answer:` as the conclusion,
    three stages, and that right solutions alone become rows.

    Args:
        prompt: a file with the question, in which `{question}` is the column `question`; it asks for a fenced program.
        verify: a file with what is asked after a program, in which `{output}` is what it printed, or its error.
        out: a .jsonl file.
        into: the column that holds a row's answer.
        run: who is asked; by default the recipe's base model.
        times: solutions to each row.
        stages: the most programs of a solution.

    Raises:
        UsageError: words that mean nothing, a model that holds no conversation, or `out` holds something else.
        DataError: the rows cannot be read, or lack a column.
    """
    path, sampling = Path(out), sampling or Sampling()
    check_words(path, times, sampling, max_new_tokens)
    question = read_template(Path(verify), "--verify")
    if PRINTED not in question:
        raise UsageError(
            f"--verify {verify}: does not hold {PRINTED}, what the program printed; write it there"
        )

    def kept() -> str:
        return f"the answers so far are in {path.with_suffix('')}.*.answers.jsonl; the same command goes on"

    with stop.listening(kept), EvaluationBar() as show:
        chosen, renderer, rewriting = rewriting_of(recipe, overrides, prompt, into, trust_remote_code)
        rows, questions = ask_rows(training_rows(chosen), rewriting, times)
        writer = find_writer(chosen, run, trust_remote_code, show)
        if not writer.converses:
            raise UsageError(
                f"--verify: {writer.name} holds no conversations; name a run or a model with a chat template"
            )
        if not cuts_network():
            say("this system gives no namespaces to users, so the programs could reach the network")
        solving = Solving(writer, rows, path, sampling, max_new_tokens, question)
        attempts = [Attempt([{"role": "user", "content": one}]) for one in questions]
        for number in range(1, stages + 1):
            solving.stage(number, attempts)
        made = _rows_of(
            attempts, rewriting, rows, [renderer.reference(row) for row in rows], times, writer.name
        )
        count, refused = write_rows(path, made)
    files = f"{path.with_suffix('')}.*.answers.jsonl"
    return {"out": str(path), "rows": count, "refused": refused, "answers": files, "before": solving.before}


@dataclass
class Solving:
    """One stage after the other, each part of it over all solutions that are still open.

    Attributes:
        before: answers of the model that were there.
    """

    writer: Writer
    rows: Rows
    out: Path
    sampling: Sampling
    max_new_tokens: int
    question: str
    before: int = 0

    def stage(self, number: int, attempts: Sequence[Attempt]) -> None:
        """Programs, what they print, and what is said of it."""
        programs: dict[int, tuple[str, str]] = {}
        for index, line in self._asked(attempts, f"{number}-program", 2 * number):
            found = find_program(line["output"])
            if found is not None:
                programs[index] = found
            else:
                attempts[index].refused = "without a program" if line["stopped"] else "cut off"
        printed = self._run(number, programs)
        for index, (shown, _) in programs.items():
            asked = self.question.replace(PRINTED, printed[index])
            attempts[index].messages += [_message("assistant", shown), _message("user", asked)]
        for index, line in self._asked(attempts, f"{number}-verified", 2 * number + 1):
            if not line["stopped"]:
                attempts[index].refused = "cut off"
                continue
            attempt, said = attempts[index], line["output"].strip()
            attempt.stages.append(Stage(programs[index][0], printed[index], said))
            attempt.answer = find_answer(said)
            attempt.messages += [_message("assistant", said), _message("user", AGAIN)]

    def _asked(
        self, attempts: Sequence[Attempt], part: str, draw: int
    ) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """What is answered to the last message of every open solution; another part draws otherwise."""
        places = [place for place, one in enumerate(attempts) if one.open]
        if not places:
            return
        ids = [self.writer.turn_ids(attempts[place].messages) for place in places]
        sampling = replace(self.sampling, seed=self.sampling.seed * 1_000 + draw)
        file, rows = self._file(part), self.rows.chosen(places)
        done = self.writer.answers(rows, ids, file, self.max_new_tokens, sampling)
        self.before += done["before"]
        yield from zip(places, file.lines(), strict=True)

    def _run(self, number: int, programs: Mapping[int, tuple[str, str]]) -> dict[int, str]:
        """What every program printed, or its error; kept, since a program may say something else the next time."""
        if not programs:
            return {}
        file, texts = self._file(f"{number}-printed"), [text for _, text in programs.values()]
        watch = self.writer.subject.watch("running programs", len(texts))
        with stop.held():
            file.open({"programs_sha256": _digest(texts), "seconds": LIMITS.seconds}, len(texts))
        try:
            for place in range(file.done, len(texts)):
                self.writer.subject.poll(place, len(texts))
                ran = run_program(texts[place], LIMITS)
                said = ran.printed.strip() if ran.ended else ran.error or "no end"
                with stop.held():
                    file.append([{"row": place, "output": said, "stopped": ran.ended}])
                watch.report(place + 1)
        finally:
            file.close()
        return {index: line["output"] for index, line in zip(programs, file.lines(), strict=True)}

    def _file(self, part: str) -> AnswersFile:
        return AnswersFile(self.out.with_suffix(f".{part}.answers.jsonl"), AnswerLine)


def _rows_of(
    attempts: Sequence[Attempt],
    rewriting: Rewriting,
    rows: Rows,
    references: Sequence[str],
    times: int,
    by: str,
) -> Iterator[Row | Refused]:
    for index, (attempt, reference) in enumerate(zip(attempts, references, strict=True)):
        if attempt.answer is None:
            yield attempt.refused or "without an answer"
        elif not is_right(attempt.answer, reference):
            yield "with a wrong answer"
        else:
            about: dict[str, Json] = {"from": rows.where(index), "by": by, "draw": index % times}
            about["stages"] = len(attempt.stages)
            yield rewriting.written(rows[index], trajectory(attempt.stages), about)


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _digest(values: Sequence[object]) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()
