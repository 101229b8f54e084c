"""`Example`: what a format makes of one row, before any tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Example:
    """A conversation for the chat template, or plain text in two parts.

    Attributes:
        messages: turns as `{"role", "content"}`; when given, the chat template renders them and the
            assistant's turns are learnt.
        prompt: plain text that is read but not learnt; empty for raw text.
        completion: plain text that is learnt, directly after the prompt.
        learn: every assistant turn, or only the last one.
        rejected: the same with the answer that this one is preferred to, in data of pairs.
    """

    messages: tuple[dict[str, str], ...] = ()
    prompt: str = ""
    completion: str = ""
    learn: Literal["all", "last"] = "all"
    rejected: Example | None = None

    def answers(self) -> tuple[Example, ...]:
        """This example, and the rejected one where there is one."""
        return (self,) if self.rejected is None else (self, self.rejected)
