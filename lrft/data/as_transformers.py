"""How transformers renders a chat template, with another clock and in another sandbox."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from lrft.data.template_budget import TooMuch
from lrft.data.template_sandbox import BoundedEnvironment, BoundedTemplate, check_length

COMPILE, SANDBOX = "_compile_jinja_template", "ImmutableSandboxedEnvironment"  # as transformers calls them


@contextmanager
def clock_stopped(clock: type) -> Iterator[None]:
    """Let templates see this clock, to which their one way is `strftime_now`."""
    with _put("datetime", clock):
        yield


@contextmanager
def within_limits() -> Iterator[None]:
    """Let transformers compile templates for the sandbox that lets none take too much."""
    with _put(COMPILE, _bounded):
        yield


@lru_cache(maxsize=16)
def _bounded(source: str) -> BoundedTemplate:
    """A template compiled as transformers does it, with its filters and functions."""
    from transformers.utils import chat_template_utils

    check_length(source)
    with _put(SANDBOX, BoundedEnvironment):
        try:
            return BoundedTemplate(getattr(chat_template_utils, f"_cached{COMPILE}")(source))
        except (SyntaxError, RecursionError, MemoryError) as error:  # of the Python that jinja makes of it
            raise TooMuch(f"it is nested too deeply to be compiled ({type(error).__name__})") from None


@contextmanager
def _put(name: str, value: object) -> Iterator[None]:
    """Put it in the place of what transformers uses under that name, which must be there."""
    from transformers.utils import chat_template_utils

    names = vars(chat_template_utils)
    before = names[name]
    names[name] = value
    try:
        yield
    finally:
        names[name] = before
