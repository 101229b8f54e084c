"""How fast this machine trained lately: the newest run under runs/ that says something of a recipe."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any, TypedDict

from lrft.recipe.schema import Recipe
from lrft.registry.errors import LrftError
from lrft.training.folder import METRICS, RUN, RunFolder
from lrft.training.relied import own_recipe

FEWEST = 3  # steps that a run must have had; the first is left out, as it warms up
ROOT = Path("runs")
AGAIN = 4 / 3  # a forward pass more, beside one and a backward pass of twice its work


class Rate(TypedDict):
    """A rate, in tokens of rows a second, and the sentence that says where it is from."""

    tokens_per_second: float
    source: str


def find_rate(recipe: Recipe, kind: str, recomputes: bool, root: Path = ROOT) -> Rate | None:
    """The rate of the newest run on such a device with the same base model, scaled by what is computed again.

    Args:
        kind: `cpu` or `cuda`; a run elsewhere says nothing.
        recomputes: layers are computed again in the backward pass.

    Returns:
        None where there is no such run: a rate is measured, or there is none.
    """
    runs = [path for path in root.glob("*") if (path / METRICS).is_file()] if root.is_dir() else []
    for path in sorted(runs, key=lambda path: (path / METRICS).stat().st_mtime, reverse=True):
        folder = RunFolder(path)
        try:
            before = own_recipe(path).recipe
            run: dict[str, Any] = folder.read(RUN)
            rates = _rates(folder)
        except LrftError:
            continue
        same = before.model.name == recipe.model.name and before.model.dtype == recipe.model.dtype
        on = "cuda" if run.get("hardware", {}).get("gpu") and before.train.device != "cpu" else "cpu"
        if not same or on != kind or len(rates) < FEWEST:
            continue
        once = bool(run.get("recomputed_layers"))
        factor = (AGAIN if once else 1.0) / (AGAIN if recomputes else 1.0)
        scaled = "" if factor == 1 else f", times {factor:.2f} for what is computed again"
        return {
            "tokens_per_second": median(rates) * factor,
            "source": f"measured here over {len(rates)} steps of {path.name}, of the same base{scaled}",
        }
    return None


def _rates(folder: RunFolder) -> list[float]:
    return [
        float(line["tokens_per_second"]) for line in folder.metrics()[1:] if line.get("tokens_per_second")
    ]
