"""`Example`: what a format makes of one row, before any tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from lrft.registry.config import FormatConfig
from lrft.registry.json import Json

Row = dict[str, Json]
Message = dict[str, Json]


class OwnRow(Row):
    """A row that is read by a format of its own, whatever the recipe's is."""

    def __init__(self, row: Row, format: FormatConfig) -> None:
        super().__init__(row)
        self.format = format


def with_columns(row: Row, columns: Row) -> Row:
    """The row with some columns changed, of the format it was of."""
    changed = {**row, **columns}
    return OwnRow(changed, row.format) if isinstance(row, OwnRow) else changed


@dataclass(frozen=True)
class Example:
    """A conversation for the chat template, or plain text in two parts.

    Attributes:
        messages: turns with `role`, `content` and whatever else the row gives them; when there are any, the chat
            template renders them and the assistant's turns are learnt, but for those of `weight` 0.
        prompt: plain text that is read but not learnt; empty for raw text.
        completion: plain text that is learnt, directly after the prompt.
        learn: every assistant turn, or only the last one.
        tools: what the conversation may call, for the chat template.
        label: what the whole text is to be given; nothing of the text itself is learnt then.
        margin: by how much more than the rejected one this is to be given, where pairs are scored.
        rejected: the same with the answer that this one is preferred to, in data of pairs.
        wanted: whether the answer is one to give, in data that judges answers.
        passages: the texts that this one, a query, is compared with: its positive passage, then its hard negatives.
        embedded: the text, which is plain, is to be embedded; nothing of it is learnt token by token.
        most_tokens: of such a text, the end-of-text token with them; a longer one loses its end. None for no limit.
    """

    messages: tuple[Message, ...] = ()
    prompt: str = ""
    completion: str = ""
    learn: Literal["all", "last"] = "all"
    tools: tuple[Message, ...] = ()
    rejected: Example | None = None
    label: Json = None
    margin: float = 0.0
    wanted: bool | None = None
    passages: tuple[Example, ...] = ()
    embedded: bool = False
    most_tokens: int | None = None

    @property
    def learnt(self) -> list[int]:
        """Indices of the messages that are learnt."""
        turns = [k for k, said in enumerate(self.messages) if said["role"] == "assistant"]
        turns = [k for k in turns if self.messages[k].get("weight") != 0]
        return turns if self.learn == "all" else turns[-1:]

    def answers(self) -> tuple[Example, ...]:
        """This example, and the rejected one or the passages, where there are any."""
        return (self, *self.passages) if self.rejected is None else (self, self.rejected)

    def texts(self, scored: bool) -> tuple[Example, ...]:
        """The same; of a pair whose texts are `scored` as a whole, each with its part of the margin as its label."""
        if self.rejected is None or not scored:
            return self.answers()
        return replace(self, label=self.margin), replace(self.rejected, label=0.0)
