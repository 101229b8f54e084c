"""Which candidates pass for real, and what is told of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lrft.api.transferring.bases import Candidate
from lrft.api.transferring.folder import Phases, as_lines
from lrft.api.transferring.pupil import Imitation
from lrft.files.write import write_file
from lrft.registry.errors import DataError
from lrft.registry.json import Json

CANDIDATES = "candidates.jsonl"


def accepted(
    phases: Phases, found: Sequence[Candidate], scores: Sequence[float | None], threshold: float
) -> list[str]:
    """The inputs that pass, of which the file of candidates says it.

    Raises:
        DataError: none does.
    """
    passed = [one is not None and one >= threshold for one in scores]
    lines: list[dict[str, Json]] = [
        {
            "row": number,
            "order": one.order,
            "input": one.text,
            **({"refused": one.why} if one.why else {"score": given}),
            "accepted": ok,
        }
        for number, (one, given, ok) in enumerate(zip(found, scores, passed, strict=True))
    ]
    write_file(phases.path / CANDIDATES, as_lines(lines), f"--out {phases.path}: {CANDIDATES}")
    if not any(passed):
        most = max(one for one in scores if one is not None)
        raise DataError(
            f"the discriminator accepted none of {sum(one is not None for one in scores):,} inputs at --threshold "
            f"{threshold:g} (the most real one has {most:.3g}, see {phases.path / CANDIDATES}); the same command "
            "with a lower --threshold goes on from here"
        )
    return [one.text for one, ok in zip(found, passed, strict=True) if ok]


def told_of(how: Imitation, accepted: int, inputs: int) -> Iterator[str]:
    """What somebody should know before it trains."""
    yield f"the discriminator accepted {accepted:,} of {inputs:,} inputs ({accepted / inputs:.1%})"
    if accepted == inputs:
        yield (
            "every input was accepted, so nothing was rejected: the discriminator tells nothing apart, or the "
            "threshold is too low"
        )
    if how.because:
        yield f"the text of the outputs is imitated, not their distributions: {how.because}"
