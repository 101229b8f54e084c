"""A task of a stranger: how long the held-out rows are."""

from __future__ import annotations

from lrft.data.tokenize import encode_all
from lrft.evaluation.subject import Subject
from lrft.evaluation.tasks._task import Task, TaskResult
from lrft.registry.axes import TASKS


@TASKS.register
class LongestRow(Task):
    """Tokens of the longest held-out row.

    Prompt: none.
    Score: the largest number of tokens (`longest`).
    Source: none, an example.
    """

    version = "longest-1"

    def run(self, subject: Subject, limit: int | None) -> TaskResult:
        rows = self.rows(subject, limit)
        encoded = encode_all(rows, self.renderer(subject))
        return self.result(subject, rows, {"longest": max(len(row.input_ids) for row in encoded)})
