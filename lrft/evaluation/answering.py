"""Answers to many prompts, given to whoever keeps them a few batches at a time, in the order of the prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from lrft.core.features import Features
from lrft.evaluation.generate import generate
from lrft.evaluation.sampling import Sampling
from lrft.evaluation.subject import Progress, Subject

BATCHES = 8  # at least so many make a window; a kill costs one


@dataclass(frozen=True)
class Given:
    """One answer.

    Attributes:
        row: number of its prompt.
        tokens: what was generated, before the stop token.
        stopped: whether there was one before the limit.
    """

    row: int
    tokens: list[int]
    stopped: bool


def answer_all(
    subject: Subject,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    sampling: Sampling,
    done: int = 0,
    where: Callable[[int], str] = "row {}".format,
    features: Sequence[Features] | None = None,
) -> Iterator[list[Given]]:
    """The answers from row `done` on, a window of consecutive rows at a time.

    Windows depend on the prompts alone, so that rows are batched alike whether or not a run was cut; a window that was
    begun is answered whole again, and what is there already left out.

    Raises:
        DataError: a prompt is empty or too long for the model; of all of them, before anything is generated.
        NumericalError: logits are no numbers.
    """
    lengths = [subject.model.virtual_now + len(prompt) + max_new_tokens for prompt in prompts]
    subject.check_lengths(lengths, where)
    show = subject.progress
    for window in windows(lengths, subject.batch_tokens * BATCHES):
        if window.stop <= done:
            continue
        outputs = generate(
            replace(subject, progress=partial(_told, show, window.start, len(prompts))),
            [prompts[row] for row in window],
            max_new_tokens,
            where=[where(row) for row in window].__getitem__,
            sampling=sampling,
            first=window.start,
            features=None if features is None else [features[row] for row in window],
        )
        given = [
            Given(row, tokens, len(tokens) < max_new_tokens)
            for row, tokens in zip(window, outputs, strict=True)
        ]
        yield [one for one in given if one.row >= done]


def _told(show: Progress | None, before: int, rows: int, what: str, done: int, total: int) -> None:
    """Progress of a window as that of all rows."""
    if show is not None:
        show(what, before + done, rows)


def windows(lengths: Sequence[int], tokens: int) -> list[range]:
    """Consecutive rows that together have at least `tokens` tokens, the last ones what is left."""
    found: list[range] = []
    start = held = 0
    for index, length in enumerate(lengths):
        held += length
        if held >= tokens or index == len(lengths) - 1:
            found.append(range(start, index + 1))
            start, held = index + 1, 0
    return found
