"""columns: prompt and completion as templates over any columns."""

from __future__ import annotations

from lrft.data.example import Example, Row
from lrft.data.formats._format import Format
from lrft.registry.axes import FORMATS
from lrft.registry.config import Field, FormatConfig, Literal, check_template, columns_of, model_validator


@FORMATS.register
class Columns(Format):
    r"""Prompt and completion as templates over any columns, for question/answer data of any shape.

        prompt: "Question: {question}\nAnswer:"     completion: " {answer}"

    Columns: all that `prompt` and `completion` name in braces; a brace that is meant literally is doubled.
    Text: with `render: plain` the two filled templates with nothing between them, the setting `system` as a first
    paragraph. With `render: chat` all three are messages in the chat template.
    Learnt: the completion and a stop token.
    """

    aliases = {
        "custom qa": 'format: {method: columns, prompt: "{question}", completion: " {answer}"}',
    }

    class Config(FormatConfig):
        prompt: str = Field(description="template of the prompt; {question} is the column `question`")
        completion: str = Field(min_length=1, description="template of what is learnt")
        render: Literal["chat", "plain"] = Field(
            "plain", description="as it is, or through the model's chat template"
        )
        system: str | None = Field(None, description="system message; in plain rendering a first paragraph")

        @model_validator(mode="after")
        def _check_templates(self) -> Columns.Config:
            for key, template in (("prompt", self.prompt), ("completion", self.completion)):
                check_template(key, template)
            if not columns_of(self.completion):
                raise ValueError("completion names no column, so every row would teach the same answer")
            return self

    config: Config

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*columns_of(self.config.prompt), *columns_of(self.config.completion))))

    @property
    def answers(self) -> tuple[str, ...]:
        asked = columns_of(self.config.prompt)
        return tuple(name for name in columns_of(self.config.completion) if name not in asked)

    def example(self, row: Row) -> Example:
        filled = {name: self.text(row, name) for name in self.columns}
        prompt, completion = self.config.prompt.format_map(filled), self.config.completion.format_map(filled)
        return self.pair(prompt, completion, self.config.system)
