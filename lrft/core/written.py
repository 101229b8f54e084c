"""What a text that a model wrote says: the numbers in it, and whether it is the text that was asked for."""

from __future__ import annotations

import json
import re
from decimal import Decimal

from lrft.registry.errors import DataError

NUMBER = re.compile(
    r"""
    (?P<sign> (?<![\w)\]%]) [-\u2212] )?        # 5-3 is five minus three, not a negative number
    \$?
    (?P<digits>
        (?: \d{1,3} (?:,\d{3})+ (?!\d) | \d+ )  # commas only between groups of three
        (?: \.\d+ )?                            # a dot that no digit follows ends the sentence
      | (?<!\d) \.\d+
    )
    """,
    re.VERBOSE,
)


def last_number(text: str) -> Decimal | None:
    """The last number of a text, or None."""
    numbers = list(NUMBER.finditer(text))
    return value_of(numbers[-1]) if numbers else None


def value_of(found: re.Match[str]) -> Decimal:
    """The number that `NUMBER` matched."""
    number = Decimal(found["digits"].replace(",", ""))
    return -number if found["sign"] else number


def same_text(output: str, reference: str) -> bool:
    """Equal but for white space at both ends."""
    return output.strip() == reference.strip()


def same_json(output: str, reference: str) -> bool:
    """Equal as JSON values: types count, so 1, 1.0, "1" and true are four values."""
    try:
        return _typed(json.loads(output)) == _typed(json.loads(reference))
    except (ValueError, RecursionError):
        return False


def check_json(reference: str) -> None:
    """Refuse a reference that no output could match.

    Raises:
        DataError: it is no JSON.
    """
    try:
        json.loads(reference)
    except (ValueError, RecursionError):
        raise DataError("the reference is not JSON; set compare: text, or correct the row") from None


def _typed(value: object) -> object:
    """The value with its types spelled out: Python holds 1, 1.0 and True for equal."""
    if isinstance(value, dict):
        return {key: _typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_typed(item) for item in value]
    return type(value).__name__, value
