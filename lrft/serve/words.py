"""`Words`: the text of an answer while its tokens come, without what may still change, up to a text that stops it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lrft.evaluation.stream import UNFINISHED


class Words:
    """Decodes token by token; the pieces it returns are the whole text.

    Args:
        decode: token ids -> text.
        stops: texts that end the answer, themselves left out.

    Attributes:
        stopped: whether one of them came.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()) -> None:
        self._decode, self._stops = decode, tuple(stops)
        self._tokens: list[int] = []
        # Tokens before `_told` are told; those from `_context` on are decoded again, as a decoder may join words.
        self._context = self._told = 0
        self._held = ""  # the beginning of a stopping text, perhaps
        self.stopped = False

    def add(self, token: int) -> str:
        """What is new and will stay."""
        self._tokens.append(token)
        before = self._decode(self._tokens[self._context : self._told])
        now = self._decode(self._tokens[self._context :])
        if now.endswith(UNFINISHED) or len(now) <= len(before):
            return ""
        self._context, self._told = self._told, len(self._tokens)
        return self._without_stop(now[len(before) :])

    def end(self) -> str:
        """What was held back."""
        if self.stopped:
            return ""
        before = self._decode(self._tokens[self._context : self._told])
        rest = self._decode(self._tokens[self._context :])[len(before) :]
        text = self._without_stop(rest)
        text, self._held = text + self._held, ""
        return text

    def _without_stop(self, text: str) -> str:
        text = self._held + text
        found = [place for place in (text.find(stop) for stop in self._stops) if place >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        kept = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
