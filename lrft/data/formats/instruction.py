"""instruction: instruction, optional input, output, in the Alpaca prompt or the chat template."""

from __future__ import annotations

from typing import Any

from lrft.core.axes import FORMATS
from lrft.core.config import Field, Literal, MethodConfig
from lrft.data.example import Example
from lrft.data.formats._format import Format

TASK = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.",
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.",
)


@FORMATS.register
class Instruction(Format):
    """Instruction, input (may be absent or empty) and output.

    {"instruction": "Translate.", "input": "Guten Tag", "output": "Good day"}
    Plain rendering is the Alpaca prompt, `system` replacing its opening sentence; in the chat rendering the
    user's message is the instruction and, after a blank line, the input. Learns the output.
    """

    aliases = {
        "alpaca instruct instructions stanford_alpaca input_output instruction_input_output "
        "self_instruct": "format: instruction",
        "alpaca_chat": "format: {method: instruction, render: chat}",
        "gpteacher": "format: {method: instruction, output: response}",
        "dolly": "format: {method: instruction, input: context, output: response}",
    }

    class Config(MethodConfig):
        instruction: str = Field("instruction", min_length=1, description="column of the task")
        input: str = Field("input", min_length=1, description="column of the task's input; may be missing")
        output: str = Field("output", min_length=1, description="column of the answer")
        render: Literal["chat", "plain"] = Field(
            "plain", description="Alpaca prompt, or the model's chat template"
        )
        system: str | None = Field(
            None, description="system message; in plain rendering the opening sentence"
        )

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.config.instruction, self.config.output)

    def example(self, row: dict[str, Any]) -> Example:
        instruction = self.text(row, self.config.instruction)
        given = self.text(row, self.config.input) if row.get(self.config.input) is not None else ""
        output = self.text(row, self.config.output)
        if self.config.render == "chat":
            return self.pair(f"{instruction}\n\n{given}" if given else instruction, output)
        opening = TASK[bool(given)] if self.config.system is None else self.config.system
        parts = [
            opening,
            f"### Instruction:\n{instruction}",
            f"### Input:\n{given}" if given else "",
            "### Response:\n",
        ]
        return Example(prompt="\n\n".join(part for part in parts if part), completion=output)
