"""A document's text to its tokens, with the mask of what is learnt.

The mask never looks for marker strings: the tokens are cut where an answer begins (`seam`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from lrft.data.chat import Span
from lrft.data.drafts import Ready, bounds_of
from lrft.data.encoded import Drawn
from lrft.data.example import Example
from lrft.data.reached import leaves
from lrft.data.seam import Sewn, leading, prefix_ids, sewn
from lrft.registry.errors import DataError
from lrft.registry.protocols import Tokenizer


class Drawing:
    """Draws documents for one model.

    Attributes:
        ready: the tokenizer, which may have the tokens of some texts ready.
        prefix: what it puts before a document.
    """

    def __init__(self, tokenizer: Tokenizer, stop_ids: set[int]) -> None:
        self.tokenizer, self.stop_ids = tokenizer, stop_ids
        self.ready: Any = Ready(tokenizer)
        self.prefix = prefix_ids(tokenizer)

    def lead(self, text: str) -> list[int]:
        """What the tokenizer puts before a document, unless the text begins with it already."""
        bos = self.tokenizer.bos_token
        return [] if bos and text.startswith(bos) else list(self.prefix)

    def plain(self, example: Example) -> Drawn:
        """A prompt and its completion, or a whole text, as they are."""
        text = example.prompt + example.completion
        bounds = [(len(example.prompt), True)] if example.prompt else []
        made = sewn(self.ready, text, bounds)
        lead, bos = self.lead(text), self.tokenizer.bos_token_id
        start = len(lead) + (made.at[0] if bounds else 0)
        ids = lead + made.ids
        front = leading(ids, bos)
        # A tokenizer that adds none leaves the beginning to the text.
        extra = front - self.prefix.count(bos) if self.prefix and bos is not None else 0
        if example.label is None and (not made.ids or ids[-1] not in self.stop_ids):
            ids.append(self._eos())
        read = min(max(start, 1), len(ids))
        supervised = [False] * read + [True] * (len(ids) - read)
        return Drawn(ids, supervised, front, extra, made.merged, made.apart, start)

    def chat(self, example: Example, text: str, spans: Sequence[Span]) -> Drawn:
        """A conversation as the template has written it; `spans` say where its answers stand."""
        made, places = self._cut(text, spans)
        supervised = [False] * len(made.ids)
        begin = places[-1][1] if places else len(made.ids)
        for start, _, end in places:
            start, end = max(start, 1), self._stopped(made.ids, start, end)
            supervised[start:end] = [True] * (end - start)
        bos, mark, extra = self.tokenizer.bos_token_id, self.tokenizer.bos_token, 0
        if bos is not None and mark is not None:
            said = sum(leaf.count(mark) for leaf in leaves([*example.messages, *example.tools]))
            twice = max(leading(made.ids, bos) - 1, 0)
            extra = made.ids.count(bos) - (text.count(mark) - said) + twice
        front = leading(made.ids, bos)
        return Drawn(made.ids, supervised, front, extra, made.merged, made.apart, begin)

    def _cut(self, text: str, spans: Sequence[Span]) -> tuple[Sewn, list[tuple[int, int, int]]]:
        """The tokens, and of each answer the first, the first of its own words, and one past the last."""
        bounds = bounds_of(spans)
        made = sewn(self.ready, text, bounds)
        at = [made.at[bisect_left(bounds, (p, False))] for s in spans for p in (s.start, s.words, s.end)]
        return made, list(zip(at[::3], at[1::3], at[2::3], strict=True))

    def _stopped(self, ids: list[int], start: int, end: int) -> int:
        """One past the last stop token of an answer: what the template writes after it is not learnt."""
        stops = [k for k in range(start, end) if ids[k] in self.stop_ids]
        return stops[-1] + 1 if stops else end

    def _eos(self) -> int:
        if self.tokenizer.eos_token_id is None:
            raise DataError(
                "model.name: the tokenizer has no end-of-text token, so plain text could never stop"
            )
        return int(self.tokenizer.eos_token_id)
