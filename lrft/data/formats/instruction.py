"""instruction: instruction, optional input, output, in the Alpaca prompt or the chat template."""

from __future__ import annotations

from dataclasses import replace

from lrft.data.example import Example, Message, Row
from lrft.data.formats._conversation import asked
from lrft.data.formats._format import Format
from lrft.registry.axes import FORMATS
from lrft.registry.config import Field, FormatConfig, Literal
from lrft.registry.errors import DataError
from lrft.registry.json import Json

TASK = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.",
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.",
)


@FORMATS.register
class Instruction(Format):
    """Instruction, input (may be absent or empty) and output, in the Alpaca prompt or the chat template.

        {"instruction": "Translate.", "input": "Guten Tag", "output": "Good day"}

    Columns: `instruction`, `input` and `output` name the three; `system`, where a row has it; with `render: chat` also
    `history`, [[question, answer], ...].
    Text: with `render: plain` the Alpaca prompt: an opening sentence (one of two, for rows with and without input),
    then `### Instruction:`, `### Input:` (left out without input) and `### Response:`, each with its text on the next
    line, a blank line between them. A system message, the row's or else the setting `system`, replaces the opening
    sentence. With `render: chat` that is the system message, and the user's message is the instruction and, after a
    blank line, the input; `history` goes before it.
    Learnt: the output and a stop token; `history` is read only.
    """

    aliases = {
        "alpaca instruct instructions stanford_alpaca input_output instruction_input_output "
        "self_instruct": "format: instruction",
        "alpaca_chat": "format: {method: instruction, render: chat}",
        "gpteacher": "format: {method: instruction, output: response}",
        "dolly": "format: {method: instruction, input: context, output: response}",
    }

    class Config(FormatConfig):
        instruction: str = Field("instruction", min_length=1, description="column of the task")
        input: str = Field("input", min_length=1, description="column of the task's input; may be missing")
        output: str = Field("output", min_length=1, description="column of the answer")
        render: Literal["chat", "plain"] = Field(
            "plain", description="Alpaca prompt, or the model's chat template"
        )
        system: str | None = Field(
            None, description="system message; in plain rendering the opening sentence"
        )

    config: Config

    @classmethod
    def guess(cls, row: Row) -> dict[str, Json] | None:
        if "instruction" not in row:
            return None
        if "output" in row:
            return {}
        context: dict[str, Json] = {"input": "context"} if "context" in row else {}
        return {**context, "output": "response"} if "response" in row else None

    @property
    def optional(self) -> tuple[str, ...]:
        return (self.config.input, "system", *(("history",) if self.config.render == "chat" else ()))

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.config.instruction, self.config.output)

    @property
    def answers(self) -> tuple[str, ...]:
        return (self.config.output,)

    def example(self, row: Row) -> Example:
        instruction = self.text(row, self.config.instruction)
        column = self.config.input
        takes = row.get(column) is not None and column not in self.config.ignore
        given = self.text(row, column) if takes else ""
        output = self.text(row, self.config.output)
        system = self.system(row)
        if self.config.render == "chat":
            made = self.pair(f"{instruction}\n\n{given}" if given else instruction, output, system)
            return replace(made, messages=_after(self._history(row), made.messages), learn="last")
        opening = TASK[bool(given)] if system is None else system
        parts = [
            opening,
            f"### Instruction:\n{instruction}",
            f"### Input:\n{given}" if given else "",
            "### Response:\n",
        ]
        return Example(prompt="\n\n".join(part for part in parts if part), completion=output)

    def _history(self, row: Row) -> list[Message]:
        """The earlier turns, which are read and not learnt."""
        held = None if "history" in self.config.ignore else row.get("history")
        rounds = held if isinstance(held, list) else [held] if held else []
        pairs = [
            (r[0], r[1])
            for r in rounds
            if isinstance(r, list) and len(r) == 2 and isinstance(r[0], str) and isinstance(r[1], str)
        ]
        if len(pairs) < len(rounds):
            raise DataError("column 'history' must be a list of [question, answer], both of them text")
        return [turn for question, answer in pairs for turn in asked(question, answer)]


def _after(earlier: list[Message], turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """The turns with earlier ones before the last question."""
    return (*turns[:-2], *earlier, *turns[-2:])
