"""One answer, told while it is generated."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from lrft.core.virtual import virtual_ids
from lrft.evaluation.batching import scoring
from lrft.evaluation.decoded import decoded
from lrft.evaluation.generate import (
    Drawn,
    batching_of,
    before_stop,
    generate_batch,
    greedy_settings,
    no_numbers,
)
from lrft.evaluation.sampling import Sampling
from lrft.evaluation.subject import Subject
from lrft.model.batching import own_settings, stock_attention

UNFINISHED = "\ufffd"  # what a decoder writes for the first bytes of a character


def stream(
    subject: Subject,
    prompt: list[int],
    max_new_tokens: int,
    tell: Callable[[str], None],
    sampling: Sampling | None = None,
    number: int = 0,
) -> tuple[list[int], bool]:
    """The answer to one prompt; `tell` hears its text piece by piece, and the pieces are the whole text.

    Args:
        sampling: how tokens are drawn; greedy without it.
        number: with the seed it decides what is drawn, as the row of a file does.

    Returns:
        Generated ids before the stop token, and whether there was one; `subject.should_stop` cuts an answer without.

    Raises:
        UsageError: the model cannot generate, or its adapter goes by features, of which a text has none.
        NumericalError: logits are no numbers.
    """
    subject.check_features(None, "lrft chat")
    stops, hf = sorted(subject.stop_ids), subject.hf
    config = greedy_settings(max_new_tokens, batching_of(subject) != "uncached", stops, subject.pad_id)
    drawn = None if sampling is None or sampling.greedy else Drawn(sampling, [number])
    pieces = Pieces(subject, tell)
    ids = [[*virtual_ids(subject.model.virtual_now), *prompt]]
    with scoring(subject.model), own_settings(hf), stock_attention(hf), decoded(hf):
        new, bad = generate_batch(subject, ids, config, drawn, pieces)
    if bad is not None:
        raise no_numbers("the answer")
    tokens = before_stop(new[0], stops)
    return tokens, len(tokens) < len(new[0])


class Pieces:
    """Decodes what was generated so far, and tells what is new of it and will not change."""

    def __init__(self, subject: Subject, tell: Callable[[str], None]) -> None:
        self.subject, self.tell = subject, tell
        self.tokens: list[int] | None = None
        self.told = ""

    def put(self, value: Tensor) -> None:
        """The prompt (1, L), then every token (1)."""
        if self.tokens is None:
            self.tokens = []
            return
        new = value.flatten().tolist()
        if set(new) & self.subject.stop_ids:
            return
        self.tokens += new
        text = self.subject.decode(self.tokens)
        if not text.endswith(UNFINISHED):
            self._tell(text)

    def end(self) -> None:
        """What was held back as unfinished is all there is."""
        self._tell(self.subject.decode(self.tokens or []))

    def _tell(self, text: str) -> None:
        if text.startswith(self.told) and text != self.told:
            self.tell(text[len(self.told) :])
            self.told = text
