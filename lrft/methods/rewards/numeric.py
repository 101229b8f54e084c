"""The answer arrives at the row's number."""

from __future__ import annotations

from decimal import Decimal

from lrft.core.reward import Attempt, Reward
from lrft.core.written import NUMBER, last_number, value_of
from lrft.registry.axes import REWARDS
from lrft.registry.errors import DataError


@REWARDS.register
class Numeric(Reward):
    """1 where the last number of an answer is the row's, else 0.

        r = [last number of the output = number of the reference]

    Score: numbers are read and compared as decimals, as the task `gsm8k` does, so 18 = 18.00 = $18. The number of the
    reference is the first after its last ####, or its last one where it has no such mark.
    Source: the rule of GSM8K's answers: Cobbe et al., "Training Verifiers to Solve Math Word Problems", 2021, arXiv
    2110.14168.
    """

    def __call__(self, attempt: Attempt) -> float:
        return float(last_number(attempt.output) == number_of(attempt.reference))

    def check(self, reference: str, limit: int) -> None:
        number_of(reference)


def number_of(reference: str) -> Decimal:
    """The number that a reference arrives at.

    Raises:
        DataError: it has none.
    """
    _, mark, rest = reference.rpartition("####")
    marked = NUMBER.search(rest) if mark else None
    found = value_of(marked) if marked else None if mark else last_number(reference)
    if found is None:
        raise DataError(
            "the row's answer has no number to arrive at; choose another reward, or correct the row"
        )
    return found
