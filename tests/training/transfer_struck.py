"""A transfer in a process of its own that kills itself with SIGKILL at a moment that is named."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import lrft.api.transferring.folder as folder
from lrft.api.transferring.record import Asked
from lrft.api.transferring.transfer import transfer
from lrft.evaluation.answering import Given
from lrft.evaluation.answers_file import AnswersFile
from lrft.training.keepers import Saver

PRELOADED = ["lrft.api.transferring.transfer", "transformers.models.llama.modeling_llama"]


def all_stopped(self: Given, row: int, tokens: list[int], stopped: bool) -> None:
    """`Given.__init__`: random models rarely end an answer; here each that was cut off counts as ended."""
    for name, value in (("row", row), ("tokens", tokens), ("stopped", True)):
        object.__setattr__(self, name, value)


def struck(run: str, to: str, out: str, asked: Asked, moment: str) -> None:
    """Transfer, and die at a moment: `lines of FILE`, `step of RUN`, `end of FILE`; at none, end."""
    setattr(Given, "__init__", all_stopped)  # noqa: B010 (a method, which mypy lets nobody assign)
    what, _, name = moment.partition(" of ")
    if what == "lines":
        _dies_after(AnswersFile, "append", lambda file, *_: file.path.name == name)
    elif what == "step":
        _dies_after(Saver, "save", lambda saver, *_: saver.folder.parent.name == name)
    elif what == "end":
        _dies_before_it_is_known(name)
    transfer(run, to, out, asked)


def _dies_after(kind: type, method: str, here: Callable[..., bool]) -> None:
    before = getattr(kind, method)

    def then(self: Any, *arguments: Any, **named: Any) -> Any:
        found = before(self, *arguments, **named)
        if here(self, *arguments):
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    setattr(kind, method, then)


def _dies_before_it_is_known(name: str) -> None:
    with_sum = folder.with_sum

    def then(record: Any) -> Any:
        if name in record.get("files", {}):
            os.kill(os.getpid(), signal.SIGKILL)
        return with_sum(record)

    folder.with_sum = then


def moments() -> list[str]:
    """One in every phase of a transfer, in their order."""
    return [
        "end of seeds.jsonl",
        "lines of source.jsonl",
        "end of discriminator.jsonl",
        "step of discriminator",
        "lines of target.jsonl",
        "lines of scores.jsonl",
        "end of scores.jsonl",
        "lines of outputs.jsonl",
        "end of rows.jsonl",
        "step of run",
    ]
