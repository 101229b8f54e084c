"""Numbers in a text that a model wrote."""

from __future__ import annotations

import re
from decimal import Decimal

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
