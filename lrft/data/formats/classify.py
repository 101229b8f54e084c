"""classify: a text, or several that are read together, and the label of the whole."""

from __future__ import annotations

from dataclasses import replace

from lrft.data.example import Example, Row
from lrft.data.formats._conversation import CONVERSATION, with_system
from lrft.data.formats._format import Format
from lrft.data.formats._turns import turns_of
from lrft.registry.axes import FORMATS
from lrft.registry.config import Field, FormatConfig, Literal
from lrft.registry.errors import DataError


@FORMATS.register
class Classify(Format):
    r"""A text and its label, for a model with a score head (`model.head`).

        {"text": "I would buy it again.", "label": "positive"}
        {"premise": "...", "hypothesis": "...", "label": 0}             with `text: [premise, hypothesis]`
        {"messages": [{"role": "user", ...}, ...], "score": 3.5}        with `text: messages`, `label: score`

    Columns: `text` names the column, or the columns that are read together, as text, or one column with a list of
    messages; `label` that of the label: a name of `model.head.labels` or its number from 0 on, or where there is one
    label alone any number. `tools` or `functions`, and `system`, where a row with messages has them.
    Text: the columns as they are, `between` between them (`render: plain`), without an end-of-text token; or one
    message of a user in the chat template (`render: chat`), the setting `system` before it. Messages always are
    rendered, whole.
    Learnt: the label, from the last token of the text. No token is a target.
    """

    aliases = {
        "classification sequence_classification seq_cls text_classification regression": "format: classify",
    }
    provides = {"labels"}

    class Config(FormatConfig):
        text: str | list[str] = Field("text", min_length=1, description="column of the text, or several")
        label: str = Field("label", min_length=1, description="column of the label")
        between: str = Field(" ", description="what stands between the texts of several columns")
        render: Literal["chat", "plain"] = Field(
            "plain", description="text as it is, or as a user's message through the model's chat template"
        )
        system: str | None = Field(
            None, description="system message where there is none; in plain rendering a first paragraph"
        )

    config: Config

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.questions, self.config.label)

    @property
    def optional(self) -> tuple[str, ...]:
        return CONVERSATION

    @property
    def answers(self) -> tuple[str, ...]:
        return (self.config.label,)

    @property
    def questions(self) -> tuple[str, ...]:
        text = self.config.text
        return (text,) if isinstance(text, str) else tuple(text)

    def asked(self, row: Row) -> Example:
        raise DataError(
            "a row of the classify format asks for a label and for no answer; lrft eval scores labels"
        )

    def example(self, row: Row) -> Example:
        return replace(self._text(row), label=self.value(row, self.config.label))

    def _text(self, row: Row) -> Example:
        names = self.questions
        if len(names) == 1 and isinstance(self.value(row, names[0]), list):
            turns = turns_of(row[names[0]], names[0], self.config.ignore)
            return Example(messages=self.opened(turns, row), tools=self.tools(row))
        if self.tools(row):
            raise DataError(
                "the tools of the row are written with a list of messages only; set data.format.ignore: [tools]"
            )
        text, system = self.config.between.join(self.text(row, name) for name in names), self.system(row)
        if not text.strip():
            raise DataError(f"the text in {' and '.join(map(repr, names))} is empty")
        if self.config.render == "plain":
            return Example(prompt=f"{system}\n\n{text}" if system else text)
        return Example(messages=tuple(with_system([{"role": "user", "content": text}], system)))
