"""Which of two answers the model's score head prefers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lrft.data.encoded import Encoded
from lrft.evaluation.subject import Subject
from lrft.evaluation.tasks._encoded import check_form, encode_texts, scores_of, shortened
from lrft.evaluation.tasks._task import OfRows, TaskResult, share
from lrft.registry.axes import TASKS
from lrft.registry.errors import NumericalError
from lrft.registry.json import Json


@TASKS.register
class Pairwise(OfRows):
    """Whether the score head gives the chosen answer more than the rejected one.

        accuracy = mean over pairs of [r_c > r_r]
        margin   = mean over pairs of r_c - r_r
        chosen   = mean over pairs of r_c           rejected = mean over pairs of r_r

    Prompt: `pairwise-1`: both texts of the row in the recipe's format, or in the task's own `format`, encoded as for
    training; r is the score of the last token. Rows are those of `data.eval`, or the task's own `data`.
    Score: equal scores are no success. Rows that `data.too_long` drops are left out and counted (`left_out`), cut ones
    are scored cut (`truncated`). margin, chosen and rejected have no standard error.
    Source: standard; as TRL's RewardTrainer reports it.
    """

    aliases = {
        "reward_accuracy preference_accuracy rewardbench": "tasks: [pairwise]",
    }

    version = "pairwise-1"
    requires = {"score_head", "pairs"}
    better = {"accuracy": "higher", "margin": "higher"}
    right_is = "accuracy"

    def run(self, subject: Subject, limit: int | None) -> TaskResult:
        """Encode as for training, then score both texts of every row once.

        Raises:
            DataError: a row is no pair, or there is none to score.
            NumericalError: a score is no finite number.
        """
        rows = self.rows(subject, limit)
        renderer = self.renderer(subject, subject.renderer.too_long)
        check_form(renderer, "pairs", "pairs", "preference")
        encoded, kept = encode_texts(subject, rows, renderer, "is a pair")
        scores = self._scores(subject, encoded)
        for index in kept:
            if not all(map(math.isfinite, scores[index])):
                raise NumericalError(f"{rows.where(index)}: a score of the pair is no finite number")
        metrics = _metrics([scores[index] for index in kept]) | shortened(encoded, kept)
        samples = [_sample(subject, encoded[index], *scores[index]) for index in kept]
        return self.result(subject, rows, metrics, samples, n=len(kept))

    def _scores(self, subject: Subject, encoded: Sequence[Encoded]) -> dict[int, tuple[float, float]]:
        """Row -> the scores of its chosen and of its rejected text."""
        return {
            index: (given[2 * k][0], given[2 * k + 1][0])
            for rows, given in scores_of(subject, encoded, self.name)
            for k, index in enumerate(rows)
        }


def _sample(subject: Subject, row: Encoded, chosen: float, rejected: float) -> dict[str, Json]:
    texts = [str(subject.tokenizer.decode(text.input_ids)) for text in row.documents()]
    return {
        "prompt": texts[0],
        "output": "chosen" if chosen > rejected else "rejected",
        "reference": "chosen",
        "correct": chosen > rejected,
        "rejected": texts[1],
        "scores": {"chosen": chosen, "rejected": rejected},
    }


def _metrics(scores: list[tuple[float, float]]) -> dict[str, float]:
    n = len(scores)
    chosen, rejected = (sum(column) / n for column in zip(*scores, strict=True))
    accuracy = share("accuracy", [better > worse for better, worse in scores])
    return {**accuracy, "margin": chosen - rejected, "chosen": chosen, "rejected": rejected}
