"""What `lrft compare` asks for: recipes and overrides as written, a report in the end."""

from __future__ import annotations

from collections.abc import Sequence

from lrft.core import stop
from lrft.core.notes import say
from lrft.lab.compare.arms import labels
from lrft.lab.compare.comparison import compare_arms
from lrft.lab.compare.record import Comparison
from lrft.lab.compare.report import check_place, write_report
from lrft.lab.compare.settings import Settings
from lrft.lab.runs.planned import make_arm
from lrft.lab.runs.typed import command_line
from lrft.recipe.merge import is_override


def compare_recipes(arguments: Sequence[str], settings: Settings) -> Comparison:
    """Compare the recipes among the arguments under the overrides among them; returns the record.

    Raises:
        UsageError: the set of recipes makes no sense.
        RecipeError: a recipe is not valid.
        LrftError, Interrupted: see `lrft.lab.runs.local.run_all`.
    """
    check_place(settings.out)
    overrides = [argument for argument in arguments if is_override(argument)]
    sources = [argument for argument in arguments if not is_override(argument)]
    arms = [
        make_arm(label, source, overrides) for label, source in zip(labels(sources), sources, strict=True)
    ]
    with stop.listening(f"what is finished in {settings.out} is kept; the same command goes on"):
        compared = compare_arms(arms, settings, command=command_line())
    title = " against ".join(arm.label for arm in arms)
    say(f"report: {write_report(compared.record, settings.out, title)}")
    return compared.record
