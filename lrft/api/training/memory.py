"""Out of memory: the plan's numbers, and the cheapest edit that takes less."""

from __future__ import annotations

import traceback
from pathlib import Path
from types import TracebackType

from lrft.api.planning.fit import Device, device_of, forecast, sentence
from lrft.build.edits import edits
from lrft.build.recomputing import SHARE
from lrft.model import heap
from lrft.recipe.schema import Recipe
from lrft.registry.errors import LrftError, OutOfMemory


class memory_advice:
    """Turns an out-of-memory error into one sentence: what the plan says that training takes, and what takes less."""

    def __init__(self, recipe: Recipe, trust_remote_code: bool = False) -> None:
        self.recipe, self.trusted = recipe, trust_remote_code

    def __enter__(self) -> None:
        return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import torch

        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
            traceback.clear_frames(trace)  # what they hold may be most of what there is
            heap.give_back()
            raise OutOfMemory(f"out of memory: {advice(self.recipe, self.trusted)}") from None


def advice(recipe: Recipe, trust_remote_code: bool = False) -> str:
    """The plan of a recipe that was too much, or where none can be made what lowers most, the cheapest first."""
    try:
        where = _whole_device(recipe)
        found, _ = forecast(recipe, where, trust_remote_code=trust_remote_code)
        return sentence(recipe, where, found, SHARE)
    except (LrftError, MemoryError):  # planning takes memory, too
        listed = (" ".join(edit.overrides) + f" ({edit.costs})" for edit in edits(recipe))
        return f"in the order that costs least: {', then '.join(listed)}"


def _whole_device(recipe: Recipe) -> Device:
    """The device with what this process holds of it."""
    where = device_of(recipe, None)
    if where["kind"] == "cuda":
        return where
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return where
    return {**where, "bytes": where["bytes"] + pages * 4096, "source": "free RAM and what this run held"}
