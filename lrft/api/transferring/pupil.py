"""The target: what it imitates of the run, the outputs that it learns, and its training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lrft.api.asking.writer import Writer
from lrft.api.opening.open_run import open_model
from lrft.api.training.train import train
from lrft.api.transferring.folder import OUTPUTS, Phases, as_lines
from lrft.api.transferring.record import Asked
from lrft.build.dataset import read_renderer
from lrft.build.job import subject
from lrft.build.teacher import Teacher, check_teacher
from lrft.core import stop
from lrft.data.example import Example, Row
from lrft.data.few_shot import FewShot, answered
from lrft.data.prompts import Asker
from lrft.data.rows import Rows, placed
from lrft.data.seam import token_ids
from lrft.evaluation.answers_file import AnswerLine, AnswersFile
from lrft.evaluation.progress import EvaluationBar
from lrft.evaluation.sampling import Sampling
from lrft.model.load import load_config
from lrft.recipe.load import LoadedRecipe
from lrft.recipe.schema import Recipe
from lrft.registry.errors import DataError, RecipeError
from lrft.registry.json import Json
from lrft.registry.protocols import Tokenizer
from lrft.training.folder import RunFolder

ROWS, RUN = "rows.jsonl", "run"


@dataclass(frozen=True)
class Imitation:
    """What is imitated: distributions of `teacher`, or texts where that is None.

    Attributes:
        because: why it is not the first choice.
    """

    teacher: str | None
    because: str = ""

    @property
    def name(self) -> str:
        """`tokens` or `text`."""
        return "text" if self.teacher is None else "tokens"


def settle_imitation(
    folder: RunFolder, source: Recipe, target: Recipe, task: FewShot, asked: Asked, trusted: bool
) -> Imitation:
    """Distributions where both models read the same tokens in the same template, and else texts.

    Args:
        target: with the format of the run.

    Raises:
        RecipeError: distributions were asked for, and cannot be compared.
    """
    if asked.match == "text":
        return Imitation(None)
    chosen = folder.path if folder.chosen is None else folder.chosen
    name = str(chosen.resolve())
    text = read_renderer(target, trusted)
    try:
        text.renderer.asked(
            text.renderer.format.asked(task.seeds[0])
        )  # which shows whether a template is used
        check_teacher(Teacher(name, source, folder), target, text, trusted)
        widths = [load_config(one.model, trusted).get_text_config().vocab_size for one in (source, target)]
        if widths[0] != widths[1]:
            raise RecipeError(
                f"{name} predicts {widths[0]:,} tokens, and model.name {widths[1]:,}, so their distributions are over "
                "other sets; give --match text",
                "objective.teacher",
            )
    except RecipeError as error:
        if asked.match == "tokens":
            raise
        return Imitation(None, error.problems[0].message)
    return Imitation(name)


def write_outputs(
    phases: Phases, folder: RunFolder, task: FewShot, inputs: Sequence[str], asked: Asked, trusted: bool
) -> dict[str, int]:
    """Let the run answer the inputs, and write the rows that the target learns; why others are none, counted.

    Raises:
        DataError: none is left, or one cannot be asked.
    """
    file = AnswersFile(phases.path / OUTPUTS, AnswerLine)
    if not phases.is_over(ROWS):
        made = [row for row in map(task.row, inputs) if row is not None]
        rows = _answered(file, folder, task, Rows(made, "accepted input", ""), asked, trusted)
        if not rows:
            why = ", ".join(f"{count:,} {what}" for what, count in _left_out(file).items())
            raise DataError(
                f"none of the run's {len(inputs):,} outputs can be learnt ({why}); raise --max-new-tokens where they "
                "are cut off, or look at the inputs that were accepted, and begin anew in another folder"
            )
        phases.end(ROWS, as_lines(rows))
    return _left_out(file)


def _left_out(file: AnswersFile) -> dict[str, int]:
    """Why outputs are not learnt, counted."""
    return dict(sorted(Counter(filter(None, map(_why, file.lines()))).items()))


def _answered(
    file: AnswersFile, folder: RunFolder, task: FewShot, asking: Rows, asked: Asked, trusted: bool
) -> list[Row]:
    """The inputs with the outputs of the run, of those that it ended."""
    with EvaluationBar() as show:
        recipe, adaptation, _ = open_model(folder)
        dated = recipe.model_copy(update={"data": recipe.data.model_copy(update={"date": folder.day})})
        text = read_renderer(dated, trusted)
        asker = Asker(text.renderer, task.seeds[0])
        examples = []
        for index, row in enumerate(asking):
            stop.poll()
            with placed(asking, index):
                examples.append(asker.row(row))
        assert folder.opened is not None, "open_model opens one"
        about: dict[str, Json] = {"checkpoint_sha256": folder.opened.manifest_sha256}
        writer = Writer(subject(dated, text, adaptation.model, show), asker, folder.path.name, about)
        writer.answers(asking, [asker.ids(one) for one in examples], file, asked.max_new_tokens, Sampling())
    return [
        answered(example, _spaced(example, line["output"], text.tokenizer))
        for example, line in zip(examples, file.lines(), strict=True)
        if not _why(line)
    ]


def _why(line: Mapping[str, object]) -> str:
    """Why an output is not learnt; empty where it is."""
    return "cut off" if not line["stopped"] else "" if str(line["output"]).strip() else "empty"


def _spaced(example: Example, output: str, tokenizer: Tokenizer) -> str:
    """The output of a plain prompt, with the space that some tokenizers leave out where a text begins."""
    drops = not str(tokenizer.decode(token_ids(tokenizer, " a"))).startswith(" ")
    joined = example.messages or not drops or example.prompt[-1:].isspace() or output[:1].isspace()
    return output if joined else f" {output}"


def train_target(
    phases: Phases, loaded: Callable[[Row], LoadedRecipe], trusted: bool
) -> tuple[str, int, dict[str, Json]]:
    """Train the target on the rows; its run, how many rows there are, and what its result holds.

    Args:
        loaded: the recipe for rows like the first.
    """
    rows = phases.lines(ROWS)
    out = phases.path / RUN
    return str(out), len(rows), train(loaded(rows[0]), out, RunFolder(out).started, trusted)
