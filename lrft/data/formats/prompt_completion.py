"""prompt_completion: two columns, joined exactly as they are."""

from __future__ import annotations

from lrft.data.example import Example, Row
from lrft.data.formats._format import Format
from lrft.registry.axes import FORMATS
from lrft.registry.config import Field, FormatConfig, Literal
from lrft.registry.json import Json


@FORMATS.register
class PromptCompletion(Format):
    """A prompt and its completion, two columns, joined exactly as they are.

        {"prompt": "2 + 2 =", "completion": " 4"}

    Columns: `prompt` and `completion` name the two; `system`, where a row has it.
    Text: with `render: plain` prompt and completion with nothing between them: a space belongs to the completion; the
    system message, the row's or else the setting `system`, is a first paragraph. With `render: chat` all three are
    messages in the chat template.
    Learnt: the completion and a stop token.
    """

    aliases = {
        "completion prompt_answer input_target": "format: prompt_completion",
        "prompt_response": "format: {method: prompt_completion, completion: response}",
        "prompt_output": "format: {method: prompt_completion, completion: output}",
    }

    class Config(FormatConfig):
        prompt: str = Field("prompt", min_length=1, description="column of the prompt")
        completion: str = Field("completion", min_length=1, description="column of the completion")
        render: Literal["chat", "plain"] = Field(
            "plain", description="as it is, or through the model's chat template"
        )
        system: str | None = Field(None, description="system message; in plain rendering a first paragraph")

    config: Config

    @classmethod
    def guess(cls, row: Row) -> dict[str, Json] | None:
        answers = [name for name in ("completion", "response", "output", "answer") if name in row]
        if len(answers) != 1 or not isinstance(row.get("prompt"), str) or isinstance(row[answers[0]], list):
            return None
        return {} if answers == ["completion"] else {"completion": answers[0]}

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.config.prompt, self.config.completion)

    @property
    def optional(self) -> tuple[str, ...]:
        return ("system",)

    @property
    def answers(self) -> tuple[str, ...]:
        return (self.config.completion,)

    def example(self, row: Row) -> Example:
        prompt, completion = (self.text(row, name) for name in self.columns)
        return self.pair(prompt, completion, self.system(row))
