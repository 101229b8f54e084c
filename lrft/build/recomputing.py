"""`model.activation_checkpointing: auto`: as few layers computed again as the free memory of the device asks for."""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from lrft.build.activations import activation_bytes, not_estimated
from lrft.build.adaptation import Adaptation
from lrft.build.measure import measure
from lrft.build.steps import shapes_of
from lrft.build.teacher import teacher_bytes
from lrft.data.steps import Shape, TrainData
from lrft.model.causal_lm import CausalLM
from lrft.model.load import load_model
from lrft.model.recompute import recomputable, recompute
from lrft.recipe.schema import Recipe
from lrft.training.private import sum_bytes

SHARE = 0.9  # of the free memory that is planned with: activations are an estimate, and blocks of memory leave gaps
GB = 10**9
GROUP = Path("/sys/fs/cgroup")
PAGE = resource.getpagesize()


class Recomputing(NamedTuple):
    """How many layers are computed again in the backward pass.

    Attributes:
        layers: so many, the first ones.
        of: layers that the model has.
        free: bytes that there were for gradients, optimizer state and activations; None where nobody asked.
        needed: bytes that these are planned to take; None likewise.
        left_out: what is not in them, in words.
    """

    layers: int
    of: int
    free: float | None = None
    needed: float | None = None
    left_out: str = ""

    def sentence(self) -> str:
        """One line on why it is so many; empty where the recipe says how many."""
        if self.free is None or self.needed is None:
            return ""
        beyond = "" if self.needed <= SHARE * self.free else ", more than is planned with"
        return (
            f"model.activation_checkpointing: {self.layers} of {self.of} layers are computed again in the backward "
            f"pass; training takes about {self.needed / GB:.1f} of {self.free / GB:.1f} GB that are free{beyond}"
            f"{f'; {self.left_out}' if self.left_out else ''}"
        )


def settle(
    recipe: Recipe,
    adaptation: Adaptation,
    data: TrainData,
    device: torch.device,
    began_with: int | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Let an adapted model that is on its device compute as many layers again as the recipe or its memory asks for.

    The adaptation is told how many, and has a note where that was chosen.

    Args:
        began_with: layers that the run began with, where it is gone on with.
    """
    model = adaptation.model
    found = as_written(recipe, model)
    if recipe.model.activation_checkpointing == "auto":
        if began_with is None:
            counted = measure(
                recipe, load_model(recipe.model, trust_remote_code=trust_remote_code, meta=True)
            )
            taken = counted["gradient_bytes"] + counted["optimizer_bytes"]
            taken += 0 if recipe.privacy is None else sum_bytes(counted["trainable"])
            taken += teacher_bytes(recipe, trust_remote_code)  # which is loaded after this
            found = choose(recipe, model, shapes_of(recipe, data), free_bytes(device), taken)
        else:
            found = found._replace(layers=began_with)
        recompute(model.hf, found.layers)
    adaptation.recomputed = found.layers
    adaptation.notes += [found.sentence()] if found.sentence() else []


def as_written(recipe: Recipe, model: CausalLM) -> Recomputing:
    """All layers or none, where the recipe says which; with `auto` none."""
    layers = model.hf.config.get_text_config().num_hidden_layers
    return Recomputing(layers if recipe.model.activation_checkpointing is True else 0, layers)


def choose(
    recipe: Recipe, model: CausalLM, shapes: Iterable[Shape], free: float, taken: float
) -> Recomputing:
    """The fewest layers with which the largest micro-batch fits; where nothing does, all but the last.

    The last layer is the first that the backward pass reaches, so computing it again would free nothing before that.

    Args:
        shapes: of the micro-batches.
        free: bytes on the device for all that training adds to what is there.
        taken: bytes of that which are no activations.
    """
    different = set(shapes)
    layers = model.hf.config.get_text_config().num_hidden_layers
    single = len(recomputable(model.hf))
    counts = range(single) if single else (0, layers)  # the code of some switches all of its layers at once
    needed = 0.0
    for count in counts:
        needed = taken + sum(activation_bytes(recipe, model, different, count))
        if needed <= SHARE * free:
            break
    left_out = not_estimated(model.hf.config.get_text_config())
    return Recomputing(count, single or layers, free, needed, left_out)


def free_bytes(device: torch.device | str) -> float:
    """Bytes on the device that nothing holds, those included that torch keeps for later."""
    where = torch.device(device)
    if where.type == "cuda":
        unused = torch.cuda.memory_reserved(where) - torch.cuda.memory_allocated(where)
        return float(torch.cuda.mem_get_info(where)[0] + unused)
    return min(_unused_pages(), _unused_of_group(), _unused_of_limits())


def _unused_pages() -> float:
    """What the system can give without swapping, caches included where it says how much of them."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _unused_of_group() -> float:
    """What is left of the memory that a container is allowed; infinite where there is no limit."""
    try:
        limit, used = ((GROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        caches = dict(line.split() for line in (GROUP / "memory.stat").read_text().splitlines())
        return math.inf if limit == "max" else int(limit) - int(used) + int(caches["inactive_file"])
    except (OSError, KeyError):
        return math.inf


def _unused_of_limits() -> float:
    """What `ulimit` leaves this process of addresses and of data; infinite where it says nothing."""
    try:
        pages = Path("/proc/self/statm").read_text().split()
    except OSError:
        return math.inf
    held = {resource.RLIMIT_AS: pages[0], resource.RLIMIT_DATA: pages[5]}
    limits = ((resource.getrlimit(kind)[0], int(count) * PAGE) for kind, count in held.items())
    return min(
        math.inf if limit == resource.RLIM_INFINITY else max(0, limit - used) for limit, used in limits
    )
