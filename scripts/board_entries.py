"""What the board compares: every method of six axes on one task, each as its own file and smoke recipe say it is used.

Nothing is listed by hand. A method's companions (the adapter that an allocator needs, all weights that a projection of
gradients is for) are those of its smoke recipe; its own settings are its defaults.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lrft.lab.runs.planned import Arm
from lrft.recipe.load import load_recipe
from lrft.registry.axes import AXES
from lrft.registry.config import Section
from lrft.registry.errors import RecipeError

ROOT = Path(__file__).parents[1]
SMOKE = ROOT / "recipes" / "smoke"
TASK = ROOT / "recipes" / "quickstart.yaml"
BOARDED = ("adapter", "init", "allocate", "restart", "optimizer", "select")
REFERENCE = ("adapter", "lora")
COMPANIONS = (*BOARDED, "trainable", "schedule")
STORAGES = ("nf4", "none")
RANK, ALPHA = 16, 32  # of the quickstart; smoke recipes have a quarter of them
TIMES = 4
STEPS, SMOKE_STEPS = 54, 3
RANKS, COUNT_STEPS = (
    ("rank", "ranks", "alpha"),
    ("every", "interval", "warmup"),
)  # how settings that do are called
FACTOR = 3.0  # between the rates tried, around that of the smoke recipe


@dataclass(frozen=True)
class Entry:
    """A method on the task.

    Attributes:
        arm: None where no recipe of it passes the check.
        settings: `defaults`, or `smoke` where these do not fit into so short a run.
        rates: ascending.
        said: why there is no recipe.
    """

    axis: str
    name: str
    arm: Arm | None
    storage: str = ""
    settings: str = ""
    rates: tuple[float, ...] = ()
    said: str = ""

    @property
    def key(self) -> str:
        """As a user names it."""
        return f"{self.axis}={self.name}"


def methods() -> list[str]:
    """AXIS=NAME of everything, what the others are compared with first."""
    found = [f"{axis}={name}" for axis in BOARDED for name in AXES[axis].names()]
    first = "=".join(REFERENCE)
    return [first, *(key for key in found if key != first)]


def entry(key: str, base: list[str], given: list[str], steps: int = STEPS) -> Entry:
    """The first recipe of the method that passes the check: on NF4 before on dense weights, on defaults before others.

    Args:
        base: overrides of all.
        given: run folders of two LoRAs, for methods that mix what was trained before.
    """
    axis, _, name = key.partition("=")
    said = ""
    for storage, settings, overrides in _candidates(axis, name, given, steps):
        together = (*base, f"quantization={storage}", f"train.max_steps={steps}", "~train.epochs", *overrides)
        try:
            arm = Arm(key, str(TASK), together, load_recipe(TASK, together).recipe, key)
        except RecipeError as error:
            said = said or " ".join(str(error).split())
            continue
        rates = tuple(float(f"{arm.recipe.optimizer.lr * times:.2g}") for times in (1 / FACTOR, 1, FACTOR))
        return Entry(axis, name, arm, storage, settings, rates)
    return Entry(axis, name, None, said=said)


def mixes(key: str) -> bool:
    """Whether the method is given adapters that were trained before."""
    axis, _, name = key.partition("=")
    return "adapters" in AXES[axis].declared(name).config.model_fields


def _candidates(axis: str, name: str, given: list[str], steps: int) -> Iterator[tuple[str, str, list[str]]]:
    """Storage, which settings, and overrides."""
    path = SMOKE / f"{name}.yaml"
    written: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    recipe = load_recipe(path).recipe
    sections = {
        key: _as_written(getattr(recipe, key)) for key in COMPANIONS if key in written and key != axis
    }
    sections = {key: _grown(key, value, steps) for key, value in sections.items()}
    loop = {key: value for key, value in written.get("train", {}).items() if key in ("clip", "eval_every")}
    loop |= {"eval_every": steps} if "eval_every" in loop else {}
    own, lr = _as_written(getattr(recipe, axis)), recipe.optimizer.lr
    assert own is not None, "the smoke recipe of a method chooses it"
    tries = (("defaults", _defaults(axis, name, own, given)), ("smoke", _grown(axis, own, steps)))
    for settings, chosen in tries:
        for storage in STORAGES:
            every = {**sections, axis: chosen}
            overrides = [f"~{key}" for key in ("adapter", "optimizer", "schedule") if key in every]
            overrides += [f"{key}={json.dumps(value)}" for key, value in every.items()]
            overrides += [f"train.{key}={json.dumps(value)}" for key, value in loop.items()]
            yield storage, settings, [*overrides, f"optimizer.lr={lr!r}"]


def _defaults(axis: str, name: str, own: dict[str, Any], given: list[str]) -> dict[str, Any]:
    """The method with its defaults: what it must be told as in its smoke recipe, ranks as all have them."""
    fields = AXES[axis].declared(name).config.model_fields
    found: dict[str, Any] = {"method": name}
    found |= {key: own[key] for key, field in fields.items() if field.is_required() and key in own}
    if axis == "adapter":
        found |= {key: value for key, value in (("rank", RANK), ("alpha", ALPHA)) if key in fields}
        found |= {"adapters": given} if "adapters" in fields else {}
    return found


def _as_written(section: Section | None) -> dict[str, Any] | None:
    """What a recipe says of a section, defaults left out; files that it names are found from anywhere."""
    return None if section is None else section.model_dump(mode="json", exclude_unset=True)


def _grown(axis: str, value: Any, steps: int) -> Any:
    """A section of a smoke recipe at the size of the task: its ranks, its steps, and the layers that all adapt."""
    if not isinstance(value, dict):
        return value
    ranks = RANKS if axis in ("adapter", "allocate") else ()
    times = dict.fromkeys(ranks, TIMES) | dict.fromkeys(COUNT_STEPS, steps // SMOKE_STEPS)
    return {key: _larger(times, key, found) for key, found in value.items() if key != "targets"}


def _larger(times: dict[str, int], key: str, found: Any) -> Any:
    """A setting that counts what grows, grown, or a list of such; any other as it is."""
    if isinstance(found, list):
        return [_larger(times, key, one) for one in found]
    if isinstance(found, bool) or not isinstance(found, int | float):
        return found
    return found * next((factor for word, factor in times.items() if key.endswith(word)), 1)
