"""What an operation of a chat template will make, told before it is made."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from string import Formatter
from typing import Any

from lrft.data.template_budget import ITEM, Budget, TooMuch, check_bits

LARGEST_NUMBER = 100_000  # that a filter or a method of a text is given: a width, a count
SLOW = 100_000  # characters that filters take which jinja wrote in Python, or with patterns
NUMBER = re.compile(r"\d+")

Args = tuple[Any, ...]


def before_operator(budget: Budget, operator: str, left: Any, right: Any) -> None:
    """Pay for `left operator right`.

    Raises:
        TooMuch: it would make too much.
    """
    if operator == "+" and isinstance(left, str | bytes | list | tuple):
        budget.spend(_held(left) + _held(right))
    elif isinstance(left, int) and isinstance(right, int):
        bits = {"*": left.bit_length() + right.bit_length(), "**": left.bit_length() * max(right, 0)}
        check_bits(bits.get(operator, max(left.bit_length(), right.bit_length())))
    elif operator == "%" and isinstance(left, str | bytes):
        _percent(budget, left, right)
    elif operator == "*":
        for items, times in ((left, right), (right, left)):
            if isinstance(times, int) and isinstance(items, str | bytes | list | tuple):
                budget.of_each(times, _held(items))


def before_method(budget: Budget, text: str | bytes, name: str, args: Args, named: Mapping[str, Any]) -> Args:
    """Pay for a method of a text; the arguments to call it with.

    Raises:
        TooMuch: it would make too much.
    """
    _check_numbers(name, (*args, *named.values()))
    if name in ("center", "ljust", "rjust", "zfill") and args:
        budget.of_each(1, _number(args[0]))
    elif name == "expandtabs":
        tab = "\t" if isinstance(text, str) else b"\t"
        size = (*args, *named.values(), 8)[0]
        budget.spend(len(text) + text.count(tab) * _number(size))  # type: ignore[arg-type]
    elif name == "replace" and len(args) >= 2:
        _replace(budget, text, args[0], args[1])
    elif name == "translate" and args and isinstance(args[0], Mapping):
        budget.of_each(len(text), max(map(_held, args[0].values()), default=1))
    elif name == "join" and args:
        return (_joined(budget, args[0], len(text)), *args[1:])
    elif name in ("split", "rsplit", "splitlines"):
        budget.spend(len(text))
    return args


def before_format(budget: Budget, text: str, given: object) -> None:
    """Pay for `text.format(...)`.

    Raises:
        TooMuch: a width is too large, or given by a field.
    """
    fields, widths = 0, 0
    for _, name, spec, _ in Formatter().parse(text):
        if spec and "{" in spec:
            raise TooMuch("it gives the width of a format field by another field; write the number")
        fields += name is not None
        widths += sum(map(_width, NUMBER.findall(spec or "")))
    budget.spend(len(text) + widths + fields * budget.size(given))


def before_function(function: Callable[..., Any], args: Args, named: Mapping[str, Any]) -> None:
    """Look at a call of one of jinja's own functions.

    Raises:
        TooMuch: it would make too much.
    """
    name = getattr(function, "__name__", "")
    if name == "generate_lorem_ipsum" and any(_number(value) > 100 for value in (*args, *named.values())):
        raise TooMuch("it asks for too long a text that says nothing")
    if name == "strftime_now" and any(_held(value) > 1000 for value in (*args, *named.values())):
        raise TooMuch("it writes the date in more than 1,000 characters")


def before_filter(budget: Budget, name: str, args: Args, named: Mapping[str, Any]) -> Args:
    """Pay for a filter whose value is the first of `args`; the arguments to call it with.

    Raises:
        TooMuch: it would make too much.
    """
    budget.spend(0)
    if not args:
        return args
    budget.size(args[0])
    value, rest = args[0], (*args[1:], *named.values())
    if name not in ("default", "d"):
        _check_numbers(name, rest)
    text = value if isinstance(value, str) else ""
    if name in FILTERS:
        FILTERS[name](budget, text, rest)
    elif name == "format":
        _percent(budget, str(value), rest)
    elif name == "tojson":
        depth = sum(_held(one) + _number(one) for one in rest)
        budget.spend(budget.size(value) * (6 + depth))  # a character may be written as \\u0000
    elif name == "join":
        between = max((_held(one) for one in rest if isinstance(one, str)), default=0)
        return (_joined(budget, value, between), *args[1:])
    elif name == "list" and text:
        budget.of_each(len(text), ITEM)
    elif name == "sum" and any(not isinstance(one, int | float | str | None) for one in rest):
        raise TooMuch("it sums up lists; write them one after another with +")
    return args


def _indent(budget: Budget, text: str, rest: Args) -> None:
    width = max(map(_held_or_number, rest), default=4)
    budget.spend(len(text) + (text.count("\n") + 1) * width)


def _replace_in(budget: Budget, text: str, rest: Args) -> None:
    if len(rest) >= 2:
        _replace(budget, text, *rest[:2])


def _padded(budget: Budget, text: str, rest: Args) -> None:
    budget.spend(len(text) + sum(map(_number, rest)))


def _slow(budget: Budget, text: str, rest: Args) -> None:
    if len(text) > SLOW:
        raise TooMuch(f"it takes a filter of a text of {len(text):,} characters that takes at most {SLOW:,}")
    budget.of_each(len(text), 1 + max(map(_held, rest), default=0))


FILTERS: dict[str, Callable[[Budget, str, Args], None]] = {
    "indent": _indent,
    "replace": _replace_in,
    "center": _padded,
    "batch": _padded,
    "slice": _padded,
    **dict.fromkeys(("wordwrap", "title", "wordcount", "urlize", "striptags", "xmlattr", "pprint"), _slow),
}


def _percent(budget: Budget, text: str | bytes, given: Any) -> None:
    """Pay for `text % given`: a width may be a number in the text, or with a star among what is given."""
    shown = text if isinstance(text, str) else text.decode("latin-1")
    fields, widths = shown.count("%"), sum(map(_width, NUMBER.findall(shown)))
    if "*" in shown and fields:
        widths += sum(_width(str(one)) for one in _each(given) if isinstance(one, int))
    budget.spend(len(shown) + widths + fields * budget.size(given))


def _replace(budget: Budget, text: Any, old: Any, new: Any) -> None:
    if type(text) is type(old):
        hits = text.count(old)
        budget.spend(len(text) + hits * _held(new))


def _joined(budget: Budget, items: Any, between: int) -> Any:
    """The items as a list, once what is joined is paid for."""
    if not isinstance(items, Iterable):
        return items
    found = []
    for item in items:
        budget.spend(0)
        found.append(item)
    budget.spend(sum(map(budget.size, found)) + between * len(found))
    return found


def _check_numbers(name: str, given: Args) -> None:
    for one in given:
        if isinstance(one, int) and abs(one) > LARGEST_NUMBER:
            raise TooMuch(f"it gives {name} the number {one:.3g}; at most {LARGEST_NUMBER:,} is allowed")


def _width(digits: str) -> int:
    if len(digits) > 5:
        raise TooMuch(f"it writes a field of {digits[:12]} characters; at most 99,999 are allowed")
    return int(digits)


def _each(given: Any) -> tuple[Any, ...]:
    if isinstance(given, Mapping):
        return tuple(given.values())
    return tuple(given) if isinstance(given, tuple | list) else (given,)


def _held(value: Any) -> int:
    """Characters of a text, or of the places of a list; 1 of anything else."""
    if isinstance(value, str | bytes):
        return len(value)
    return ITEM * len(value) if isinstance(value, list | tuple) else 1


def _number(value: Any) -> int:
    return abs(value) if isinstance(value, int) else 0


def _held_or_number(value: Any) -> int:
    return _number(value) if isinstance(value, int) else _held(value)
