"""What is asked of the rows of an objective whose answers are drawn, and rows with an answer in the place of a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log

from lrft.core.context import computing
from lrft.core.drawing import Drawing, Rewording
from lrft.core.reward import Attempt
from lrft.core.run import Run
from lrft.data.collate import collate
from lrft.data.encoded import Encoded
from lrft.data.example import Row, with_columns
from lrft.data.prompts import Asker
from lrft.data.question import Question
from lrft.data.rewrite import Rewriting
from lrft.data.rows import Rows
from lrft.data.tokenize import Renderer
from lrft.evaluation.batching import scoring, token_batches
from lrft.evaluation.subject import Subject
from lrft.registry.errors import DataError, RecipeError, UsageError


def find_questions(objective: Drawing, renderer: Renderer, rows: Rows) -> Callable[[Row], Question]:
    """What a row asks the model: its own prompt, or what the objective asks about it, as `lrft data augment` does.

    Raises:
        RecipeError: what the objective asks is no template.
    """
    rewords = objective.rewords
    if rewords is None:
        return renderer.question
    rewriting, asker = _rewriting(rewords, renderer), Asker(renderer, rows[0])

    def question(row: Row) -> Question:
        ids = asker.ids(asker.text(rewriting.question(row)))
        return Question(ids, [], str(row[rewords.column]), features=renderer.features.of(row))

    return question


class Reworded:
    """How good answers are that each stand in the place of a text of their row."""

    def __init__(self, run: Run, objective: Drawing, subject: Subject) -> None:
        assert objective.rewords is not None, "asked of objectives that reword alone"
        self.run, self.objective, self.subject = run, objective, subject
        self.rewriting = _rewriting(objective.rewords, subject.renderer)

    def worth(self, row: Row, attempts: Sequence[Attempt]) -> list[float]:
        """What the objective gives for each; for one that makes no row, what a uniform model gives for the answer."""
        made = [self._encoded(row, attempt.output) for attempt in attempts]
        found = [self._least(row)] * len(attempts)
        usable = [place for place, one in enumerate(made) if one is not None and one.targets]
        documents = {place: one for place in usable if (one := made[place]) is not None}
        lengths = [len(documents[place].input_ids) for place in usable]
        for chosen in token_batches(lengths, self.subject.batch_tokens):
            places = [usable[k] for k in chosen]
            rows = [[documents[place]] for place in places]
            batch = collate(rows, self.subject.pad_id, None, [[place] for place in places])
            run = self.run
            with scoring(run.model), computing(batch, counts=False, done=run.step / run.planned_steps):
                worth = self.objective.worth(run.model, batch.to(run.device)).tolist()
            for place, one in zip(places, worth, strict=True):
                found[place] = one
        return found

    def _encoded(self, row: Row, text: str) -> Encoded | None:
        made = self.rewriting.written(row, text, {})
        if isinstance(made, str):
            return self.subject.renderer.encode(row) if made == "unchanged" else None
        try:
            return self.subject.renderer.encode(with_columns(row, made))  # of the format that the row is of
        except DataError:
            return None

    def _least(self, row: Row) -> float:
        size = self.subject.hf.config.get_text_config().vocab_size
        return -log(size) * self.subject.renderer.encode(row).targets


def _rewriting(rewords: Rewording, renderer: Renderer) -> Rewriting:
    found = Rewriting(rewords.template, rewords.column, renderer.format)
    try:
        found.check()
    except UsageError as error:
        raise RecipeError(str(error).removeprefix("--prompt: "), "objective.ask") from None
    return found
