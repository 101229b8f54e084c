"""Numbers of options: as those of a recipe have bounds, so have these, in every command alike."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand

from lrft.registry.errors import UsageError


class Bounded(TyperCommand):
    """A command that takes no number which nothing can be counted or computed with."""

    def invoke(self, ctx: Any) -> Any:
        """Run it, once its options are known to be meant.

        Raises:
            UsageError: names the first option that is not, with the bound.
        """
        for option in self.params:
            if option.name is not None and option.opts[0].startswith("-"):
                check_option(option.opts[0], ctx.params.get(option.name))
        return super().invoke(ctx)


def check_option(name: str, value: object) -> None:
    """Refuse a number that no machine can mean, also one among several.

    Raises:
        UsageError: with the bound.
    """
    from lrft.registry.section import check_meant

    try:
        check_meant(value)
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from None


def bound(app: typer.Typer) -> None:
    """Let every command check its options, those of its groups too."""
    for command in app.registered_commands:
        command.cls = Bounded
    for group in app.registered_groups:
        if group.typer_instance is not None:
            bound(group.typer_instance)
