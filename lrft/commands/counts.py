"""What a recipe counts, as rows of a table: of `lrft plan`, and of `lrft train --dry-run`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from lrft.api.planning.ahead import Ahead
    from lrft.api.planning.plan import Plan


def add_rows(table: Table, rows: Iterable[tuple[str, str]]) -> None:
    """Add them in their order."""
    for row in rows:
        table.add_row(*row)


def parameter_rows(plan: Ahead | Plan) -> list[tuple[str, str]]:
    """How many numbers there are, and how many train."""
    share = f"{plan['trainable_percent']:.3f} % of base + trainable"
    return [
        ("base parameters", f"{plan['base_parameters']:,}"),
        ("trainable parameters", f"{plan['trainable_parameters']:,} ({share})"),
    ]


def target_rows(plan: Ahead | Plan) -> list[tuple[str, str]]:
    """What every pattern of `adapter.targets` reaches."""
    return [
        (f"target {row['pattern']}", f"{row['modules']} layers, {row['share']:.1%} of all matrices")
        for row in plan["targets"]
    ]


def recomputed_rows(plan: Ahead | Plan) -> list[tuple[str, str]]:
    """How many layers are computed again in the backward pass, where any is."""
    layers = plan["recomputed_layers"]
    return [("layers computed again", str(layers))] if layers else []
