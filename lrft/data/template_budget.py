"""What one rendering of a chat template may take: work, characters, and processor time.

A template comes with a model or a recipe and is a program: it may loop for ever, double a text until the memory is
full, or build a list of lists that is short to hold and endless to print. Time is that of the thread, so that a stopped
or busy machine refuses nothing.
"""

from __future__ import annotations

import time
from collections.abc import Collection

from jinja2 import TemplateRuntimeError
from jinja2.utils import Namespace

# Of the processor, a rendering: so many, and for each character given. What models ship takes milliseconds.
SECONDS, SECONDS_OF_EACH = 3.0, 2e-6
# Characters that are made in all: these, so many for each given, and never more than the last.
MADE, MADE_OF_EACH, MOST_MADE = 64 * 10**6, 500, 10**9
LARGEST, LARGEST_OF_EACH = 4 * 10**6, 20  # characters of one value, and so many for each that was given
ITEM = 16  # characters that an item of a list counts as
BITS = 16_000  # of a whole number; Python prints none of more than 4,300 digits


class TooMuch(TemplateRuntimeError):
    """The template took more than a rendering may."""


class Budget:
    """What is left of it.

    Args:
        given: characters of what the template is given: a long conversation may be long when it is written.
    """

    def __init__(self, given: int) -> None:
        self.left = min(MADE + MADE_OF_EACH * given, MOST_MADE)
        self.largest = LARGEST + LARGEST_OF_EACH * given
        self.seconds = SECONDS + SECONDS_OF_EACH * given
        self.until = time.thread_time() + self.seconds
        self._asked = 0
        self._sizes: dict[int, tuple[object, int]] = {}  # of containers, which a template cannot change

    def spend(self, characters: int) -> None:
        """Take from it, before the work is done.

        Raises:
            TooMuch: that much is not left.
        """
        self.left -= characters + 1
        if characters > self.largest:
            raise TooMuch(
                f"it makes a text of {characters:,} characters; at most {self.largest:,} are allowed"
            )
        if self.left < 0:
            raise TooMuch("it makes more text than a conversation of this length can need")
        self._asked += 1
        if (self._asked % 32 == 0 or characters > 10_000) and time.thread_time() > self.until:
            raise TooMuch(f"it computes for more than {self.seconds:.0f} seconds")

    def size(self, value: object) -> int:
        """Characters of a value when it is written out, about; a part that stands in it twice counts twice.

        Raises:
            TooMuch: that is more than one value may have, or a namespace, whose length is not known.
        """
        if isinstance(value, str | bytes):
            return len(value)
        if isinstance(value, Namespace):
            raise TooMuch("it writes out a namespace; write its attributes")
        if not isinstance(value, dict | list | tuple):
            return ITEM
        known = self._sizes.get(id(value))
        if known is not None and known[0] is value:
            return known[1]
        parts: list[object] = [*value.keys(), *value.values()] if isinstance(value, dict) else [*value]
        found = ITEM + sum(ITEM + self.size(part) for part in parts)
        if found > self.largest:
            raise TooMuch(f"it makes a list of {found:,} characters; at most {self.largest:,} are allowed")
        self._sizes[id(value)] = value, found
        return found

    def charge(self, value: object) -> None:
        """Take what a value costs that was just made: itself, not what stands in it.

        Raises:
            TooMuch: see `spend` and `size`.
        """
        if isinstance(value, str | bytes):
            self.spend(len(value))
        elif isinstance(value, Collection) and not isinstance(value, range):
            self.size(value)
            self.spend(ITEM * len(value))
        elif isinstance(value, int):
            check_bits(value.bit_length())
        else:
            self.size(value)

    def of_each(self, times: int, characters: int) -> None:
        """Take `times` texts of so many characters."""
        self.spend(max(times, 0) * max(characters, 0))


def check_bits(bits: int) -> None:
    """Refuse a whole number that takes long to compute with.

    Raises:
        TooMuch: it has too many bits.
    """
    if bits > BITS:
        raise TooMuch(f"it makes a number of {bits:,} bits; at most {BITS:,} are allowed")


def given_size(value: object) -> int:
    """Characters of plain values, in one walk."""
    found, waiting = 0, [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, str):
            found += len(part)
        elif isinstance(part, dict):
            waiting += [*part.keys(), *part.values()]
        elif isinstance(part, list | tuple):
            waiting += part
        found += ITEM
    return found
