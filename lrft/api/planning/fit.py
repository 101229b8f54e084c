"""Whether a recipe fits into the memory of a device, and the cheapest edits with which it does."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TypedDict

import torch

from lrft.build.edits import fitting
from lrft.build.measured import Peak, Peaks
from lrft.build.peaks import peaks_of
from lrft.build.recomputing import free_bytes
from lrft.build.replanning import TrainingPeaks
from lrft.build.teacher import teacher_bytes
from lrft.data.steps import Shape
from lrft.model.described import build_skeleton
from lrft.recipe.offload_section import why_not
from lrft.recipe.schema import Recipe
from lrft.registry.errors import RecipeError, UsageError
from lrft.registry.size import parse_size

GIB, LEAST = 2**30, 2**20


class Device(TypedDict):
    """Where a recipe would run: `cpu` or `cuda`, with so many bytes, and where that is from."""

    kind: str
    bytes: int
    source: str


class Change(TypedDict):
    """An edit that makes a recipe fit: as overrides, what it gives up, and the peak that it was planned to have."""

    overrides: list[str]
    costs: str
    total: int
    margin: int


def forecast(
    recipe: Recipe, where: Device, shapes: Sequence[Shape] = (), trust_remote_code: bool = False
) -> tuple[Peaks, str]:
    """The peaks of a recipe on a device, and where the model's description is from.

    Args:
        shapes: of the micro-batches; without any, rows are full.

    Raises:
        RecipeError: there is no description, or it is of a family that is not known layer by layer; or the recipe
            keeps something elsewhere that cannot lie there while this device computes.
    """
    _check_offload(recipe, where)
    model, described = build_skeleton(recipe.model, trust_remote_code)
    beside = teacher_bytes(recipe, trust_remote_code)
    found = peaks_of(recipe, model, where["kind"], shapes, where["bytes"] - beside)
    return found._replace(train=_with_weights(found.train, beside)), described.source


def _check_offload(recipe: Recipe, where: Device) -> None:
    for part in recipe.offload.parts:
        if message := why_not(getattr(recipe.offload, part), where["kind"]):
            raise RecipeError(message, f"offload.{part}")


def _with_weights(peak: Peak, beside: int) -> Peak:
    """The peak with the bytes of another model, which is there from the first moment to the last."""
    return {**peak, "weights": peak["weights"] + beside, "total": peak["total"] + beside}


def changes(recipe: Recipe, where: Device, enough: int = 3) -> list[Change]:
    """The cheapest edits with which training fits, each planned again."""
    with ExitStack() as opened:
        peaks = TrainingPeaks(where["kind"], lambda changed: build_skeleton(changed.model)[0], opened)

        def total(changed: Recipe) -> int:
            _check_offload(changed, where)
            beside = teacher_bytes(changed)
            return peaks.total(changed, where["bytes"] - beside) + beside

        found = fitting(recipe, where["bytes"], total, enough)
    return [
        {
            "overrides": list(fit.edit.overrides),
            "costs": fit.edit.costs,
            "total": fit.total,
            "margin": where["bytes"] - fit.total,
        }
        for fit in found
    ]


def device_of(recipe: Recipe, size: str | None) -> Device:
    """Where a recipe would run. A size alone is taken for a GPU's, unless the recipe wants the CPU.

    Raises:
        UsageError: `size` is none.
    """
    on_cpu = recipe.train.device == "cpu"
    if size is not None:
        there = parse_size(size, "--device")
        if there < LEAST:
            number = size.strip().rstrip("Bb")
            raise UsageError(
                f"--device: {size!r} is {there} bytes, less than a process takes; write {number}GiB"
            )
        return {"kind": "cpu" if on_cpu else "cuda", "bytes": there, "source": "--device"}
    if not on_cpu and torch.cuda.is_available():
        name, memory = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory
        return {"kind": "cuda", "bytes": int(memory), "source": name}
    return {"kind": "cpu", "bytes": int(free_bytes("cpu")), "source": "RAM that is free now"}


def sentence(recipe: Recipe, where: Device, found: Peaks, share: float = 1.0) -> str:
    """What training takes, of what, and the cheapest edit that takes less, as one sentence without its end.

    Args:
        share: of the device that an edit has to fit into, where the recipe as it is does not.
    """
    peak, there = found.train, where["bytes"]
    taken = f"training takes about {peak['total'] / GIB:.2f} GiB in the {found.moment} ({parts(peak)})"
    fits = peak["total"] <= there
    limit = peak["total"] - 1 if fits else int(share * there)
    best = changes(recipe, {**where, "bytes": limit}, 1)
    beside = f"{there / GIB:.2f} GiB ({where['source']})"
    head = f"{taken}, {'less than' if fits else 'more than'} the {beside}"
    if not best:
        return f"{head}, and no edit that is known here makes it fit" if not fits else head
    does = "takes" if fits else "fits with"
    return f"{head}; {' '.join(best[0]['overrides'])} {does} {best[0]['total'] / GIB:.2f} GiB ({best[0]['costs']})"


def parts(peak: Peak) -> str:
    """What holds the bytes of a peak, the largest first."""
    sizes = {name: size for name, size in peak.items() if name != "total" and isinstance(size, int) and size}
    ordered = sorted(sizes, key=lambda name: -sizes[name])
    return ", ".join(f"{name.replace('_', ' ')} {sizes[name] / GIB:.2f}" for name in ordered)
