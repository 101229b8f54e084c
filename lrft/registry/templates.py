"""The chat templates that come with lrft, by file name. No torch here: recipes are checked without it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "data" / "chat_templates"


def template_names() -> list[str]:
    """The names that `data.template` may have, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.jinja"))


@cache
def named_template(name: str) -> str:
    """The Jinja text of a named template, which leaves `bos` and `stop` to be set before it."""
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8").rstrip("\n")


def is_jinja(text: str) -> bool:
    """Whether a text is a template itself, and neither the name nor the path of one."""
    return "{{" in text or "{%" in text
