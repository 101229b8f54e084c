"""What `lrft transfer` is asked, and what it leaves beside the rows and the runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NotRequired, TypedDict

from lrft.evaluation.sampling import Sampling
from lrft.registry.errors import UsageError
from lrft.registry.json import Json

Match = Literal["auto", "tokens", "text"]
MATCHES = ("auto", "tokens", "text")
DRAWN = Sampling(temperature=1.0)


@dataclass(frozen=True)
class Asked:
    """The settings of a transfer. Nobody found those of the paper: threshold, loss, ranks, rates and numbers are ours.

    Attributes:
        seeds: a file of rows in the format of the run; None draws `shots` of those that it was trained on.
        discriminator: one of an earlier transfer of this run; None trains it here, on rows that the run was trained on.
        judge: overrides of the discriminator's recipe.
        contrast: inputs of each kind, real and written, that the discriminator learns from, at most.
        candidates: inputs that the target's base is asked for.
        threshold: probability of being real from which the discriminator accepts an input.
        match: what is imitated: the distributions of tokens, the text, or the first of the two that is possible.
        prompt: a file with the question, in which `{examples}` are the seeds.
        sampling: of the inputs; outputs of the source are its likeliest ones.
        max_new_tokens: longest input, and longest output.
    """

    seeds: Path | None = None
    shots: int = 5
    discriminator: Path | None = None
    judge: Sequence[str] = ()
    contrast: int = 256
    candidates: int = 1000
    threshold: float = 0.5
    match: Match = "auto"
    prompt: Path | None = None
    sampling: Sampling = field(default=DRAWN)
    max_new_tokens: int = 256

    def check(self) -> None:
        """Refuse what means nothing.

        Raises:
            UsageError: names the option.
        """
        self.sampling.check()
        if self.sampling.greedy:
            raise UsageError(
                "--temperature 0: inputs that differ have to be drawn; give a temperature, such as 1"
            )
        if not 0 <= self.threshold <= 1:
            raise UsageError(f"--threshold {self.threshold}: is a probability; give a number from 0 to 1")
        if self.match not in MATCHES:
            raise UsageError(f"--match {self.match}: choose {', '.join(MATCHES[:-1])} or {MATCHES[-1]}")
        for name in ("shots", "contrast", "candidates", "max_new_tokens"):
            if (value := getattr(self, name)) < 1:
                raise UsageError(f"--{name.replace('_', '-')} {value}: give at least 1")
        if self.discriminator is not None and self.judge:
            raise UsageError(
                f"--judge {self.judge[0]}: is of a discriminator that is trained here; leave it out, or --discriminator"
            )


class Pool(TypedDict):
    """What a model wrote: how many answers, how many of them are inputs, and why the others are none."""

    asked: int
    inputs: int
    refused: dict[str, int]


class Judge(TypedDict):
    """The discriminator: its run, on how many texts it trained, and how it scores those it did not see."""

    run: str
    real: NotRequired[int]
    written: NotRequired[int]
    held_out: NotRequired[dict[str, float]]


class Transferred(TypedDict):
    """What a transfer did.

    Attributes:
        source: what the source's base wrote for the discriminator; absent where that was given.
        target: what the target's base wrote.
        accepted: inputs that the discriminator let pass, `acceptance` their share of `target`'s inputs.
        imitated: `tokens` or `text`, `because` where that was not the first choice.
        outputs: why outputs of the source are not learnt; `rows` are those that are.
        run: the run of the target, `training` of its end.
    """

    seeds: int
    source: NotRequired[Pool]
    discriminator: Judge
    target: Pool
    threshold: float
    accepted: int
    acceptance: float
    imitated: str
    because: str
    outputs: dict[str, int]
    rows: int
    run: str
    training: dict[str, Json]
    notes: list[str]
