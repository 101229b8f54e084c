"""Templates over the columns of a row, `{question}` being the column `question`. No torch here."""

from __future__ import annotations

from functools import cache
from string import Formatter


@cache
def columns_of(template: str) -> tuple[str, ...]:
    """The columns that a template names, in its order."""
    return tuple(name for _, name, _, _ in Formatter().parse(template) if name)


def check_template(key: str, template: str) -> None:
    """Refuse what is no template over columns.

    Args:
        key: names it in the message.

    Raises:
        ValueError: a brace is left open, or holds something else than the name of a column.
    """
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{key} is no template ({error}); double a literal brace: {{{{ or }}}}") from None
    names = [name for _, name, _, _ in parts if name is not None]
    plain = all(name and not name.isdigit() and "." not in name and "[" not in name for name in names)
    if not plain or any(spec or conversion for _, _, spec, conversion in parts):
        raise ValueError(f"{key} may hold only column names in braces, such as {{question}}")
