"""preference: two answers to one prompt, the chosen and the rejected one."""

from __future__ import annotations

from dataclasses import replace

from lrft.data.example import Example, Message, Row
from lrft.data.formats._answered import Answered
from lrft.data.formats._conversation import CONVERSATION
from lrft.registry.axes import FORMATS
from lrft.registry.config import ADDED, Annotated, Field, FormatConfig, Literal
from lrft.registry.errors import DataError
from lrft.registry.json import Json

MOST_MARGIN = 1e6  # of scores; what is beyond is a time or an id, and no margin


@FORMATS.register
class Preference(Answered):
    """A prompt with a chosen and a rejected answer, for objectives that compare the two.

        {"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"}
        {"prompt": [{"role": "user", ...}], "chosen": [{"role": "assistant", ...}], "rejected": [{...}]}
        {"chosen": [{"role": "user", ...}, {"role": "assistant", ...}], "rejected": [the same but for the last]}

    Columns: `chosen` and `rejected` name the answers, both text or both lists of messages; `prompt` the prompt, which
    is not read where answers hold it; `tools` or `functions`, and `system`, where a row has them.
    Text: text is joined as it is (`render: plain`, the setting `system` as a first paragraph) or rendered by the chat
    template (`render: chat`); messages always are. One text for each answer, both with the prompt.
    Learnt: both answers with their stop tokens. Scores on held-out rows are of the chosen answer, as if it were the
    only one. With a score head (`model.head`) both texts are scored whole, without an end-of-text token behind plain
    ones, and no token is learnt; `margin` names the column that says by how much the chosen one is to be the better.
    """

    aliases = {
        "pairs pairwise ranking comparison chosen_rejected paired_preference hh_rlhf": "format: preference",
    }
    provides = {"pairs"}

    class Config(FormatConfig):
        prompt: str = Field(
            "prompt", min_length=1, description="column of the prompt; not read where answers hold it"
        )
        chosen: str = Field("chosen", min_length=1, description="column of the preferred answer")
        rejected: str = Field("rejected", min_length=1, description="column of the other answer")
        render: Literal["chat", "plain"] = Field(
            "plain", description="text as it is, or through the model's chat template"
        )
        system: str | None = Field(
            None, description="system message where there is none; in plain rendering a first paragraph"
        )
        margin: Annotated[str | None, ADDED] = Field(
            None, min_length=1, description="column of the margin of a pair that a score head learns"
        )

    config: Config

    @classmethod
    def guess(cls, row: Row) -> dict[str, Json] | None:
        return {} if "chosen" in row and "rejected" in row else None

    @property
    def optional(self) -> tuple[str, ...]:
        return (self.config.prompt, *CONVERSATION)

    @property
    def columns(self) -> tuple[str, ...]:
        margin = () if self.config.margin is None else (self.config.margin,)
        return (self.config.chosen, self.config.rejected, *margin)

    @property
    def answers(self) -> tuple[str, ...]:
        return self.columns[:2]

    @property
    def questions(self) -> tuple[str, ...]:
        return (self.config.prompt,)

    def asked(self, row: Row) -> Example:
        return self.asked_in_messages(row, self.config.prompt) or super().asked(row)

    def example(self, row: Row) -> Example:
        return replace(self._pair(row), margin=self._margin(row))

    def _margin(self, row: Row) -> float:
        name = self.config.margin
        if name is None:
            return 0.0
        value = self.value(row, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < MOST_MARGIN:
            raise DataError(
                f"column {name!r} holds {value!r}; the margin of a pair is a number from 0 on, below {MOST_MARGIN:g}"
            )
        return float(value)

    def _pair(self, row: Row) -> Example:
        names = (self.config.chosen, self.config.rejected)
        lists = [isinstance(self.value(row, name), list) for name in names]
        if not any(lists):
            prompt = self.text(row, self.config.prompt)
            chosen, rejected = (self.pair(prompt, self.text(row, name), self.system(row)) for name in names)
            return self._with_tools(replace(chosen, rejected=rejected), row)
        if not all(lists):
            raise DataError(
                f"one of the columns {names[0]!r} and {names[1]!r} holds text and the other a list of messages; "
                "write both the same way"
            )
        turns, others = (self._conversation(row, name) for name in names)
        if turns[:-1] != others[:-1]:
            raise DataError(
                f"the conversations in {names[0]!r} and {names[1]!r} differ before their last message; the two "
                "answers of a pair must answer the same prompt"
            )
        rejected = Example(messages=others, learn="last")
        return self._with_tools(Example(messages=turns, learn="last", rejected=rejected), row)

    def _with_tools(self, pair: Example, row: Row) -> Example:
        tools = self.tools_beside(pair, row)
        if not tools or pair.rejected is None:
            return pair
        return replace(pair, tools=tools, rejected=replace(pair.rejected, tools=tools))

    def _conversation(self, row: Row, column: str) -> tuple[Message, ...]:
        turns = self.conversation(row, self.config.prompt, column)
        if turns[-1].get("weight") == 0:
            raise DataError(f"column {column!r}: the answer has weight 0; both answers of a pair are learnt")
        return turns
