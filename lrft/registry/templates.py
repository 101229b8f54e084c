"""The chat templates that come with lrft, by file name. No torch here: recipes are checked without it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "data" / "chat_templates"

# What named templates hold, and what stood there when runs began that may be gone on with: rows are written alike by
# both, but for an answer that begins with a space.
REWRITTEN = {
    (
        "{{- ':' -}}\n"
        "  {#- An answer as it is generated, after the colon, begins with the space. -#}\n"
        "  {%- if not (message.role == 'assistant' and message.content is string "
        "and message.content.startswith(' ')) -%}{{- ' ' -}}{%- endif -%}\n"
        "  {{- message.content -}}"
    ): "{{- ': ' -}}{{- message.content -}}",
}


def template_names() -> list[str]:
    """The names that `data.template` may have, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.jinja"))


@cache
def named_template(name: str) -> str:
    """The Jinja text of a named template, which leaves `bos` and `stop` to be set before it."""
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8").rstrip("\n")


def as_first_written(text: str) -> str:
    """A template with what was rewritten in it as it was, so that its sum is that of the runs it was written for."""
    for now, before in REWRITTEN.items():
        text = text.replace(now, before)
    return text


def is_jinja(text: str) -> bool:
    """Whether a text is a template itself, and neither the name nor the path of one."""
    return "{{" in text or "{%" in text
