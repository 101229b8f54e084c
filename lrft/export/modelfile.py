"""Ollama's Modelfile: which files, the template that training saw, and where an answer ends."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from lrft.data.chat import ChatTemplate
from lrft.export import turns
from lrft.export.conversation import write
from lrft.export.turns import Message, Untranslated
from lrft.registry.errors import UsageError

MODELFILE = "Modelfile"
QUOTES = '"""'
RAW = "{{ .Prompt }}"


def translate(template: ChatTemplate, command: str) -> tuple[str, list[str]]:
    """A chat template as Ollama's, proven on conversations; and what has to be told of it.

    Raises:
        UsageError: it cannot be said in a Modelfile; says why.
    """

    def render(messages: Sequence[Message], prompt: bool) -> str:
        return write(template, messages, prompt)

    try:
        learnt = turns.learn(render)
        if template.asks_for_the_date:
            raise Untranslated("it writes the day's date")
        found = learnt.as_go()
        if QUOTES in found:
            raise Untranslated("it writes three quotation marks in a row")
        told = turns.prove(found, render, "system" in learnt.around)
    except (Untranslated, ValueError) as error:
        raise UsageError(
            f"{command}: the chat template cannot be said in a Modelfile ({error}); `--for gguf` keeps it "
            "as it is, for llama.cpp's server"
        ) from None
    if "system" not in learnt.around:
        told.append("the chat template knows no system messages, so the Modelfile leaves them out")
    if "tools" in str(template.tokenizer.chat_template):
        told.append("tools of the chat template are not in the Modelfile")
    return found, told


def modelfile(files: Sequence[tuple[str, str]], template: str, stops: Sequence[str]) -> str:
    """The text of a Modelfile.

    Args:
        files: (instruction, what it names), in order.
    """
    lines = [f"{instruction} {name}" for instruction, name in files]
    lines.append(f"TEMPLATE {QUOTES}{template}{QUOTES}")
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    return "\n".join(lines) + "\n"


def template_of(text: str) -> str | None:
    """The template that a Modelfile holds, or None."""
    found = re.search(r'^TEMPLATE """(.*?)"""', text, re.MULTILINE | re.DOTALL)
    return None if found is None else found[1]


def stops_of(text: str) -> list[str]:
    """The stops that a Modelfile holds."""
    return [json.loads(found) for found in re.findall(r'^PARAMETER stop (".*")$', text, re.MULTILINE)]
