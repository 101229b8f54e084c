"""Whether the disk has room for a run, looked at before its first step."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from lrft.build.at_rest import checkpoint_bytes
from lrft.build.job import Job
from lrft.core.adapted import adapted
from lrft.core.frozen import FrozenLinear
from lrft.core.notes import say
from lrft.files.failure import check_room, free
from lrft.model.causal_lm import CausalLM
from lrft.model.load import DTYPES
from lrft.recipe.schema import Recipe
from lrft.registry.axes import ADAPTERS

CHECKPOINTS = 3  # that are there at once: the one before, the best, and the one being written
ADAPTERS_KEPT = 3  # last/, best/ and adapter/


def check_disk(job: Job) -> None:
    """Refuse a run whose checkpoints do not fit; say where a merge would not fit beside them.

    What is there of a run that is gone on with is counted as room, since it gives way.

    Raises:
        WriteError: with the bytes that are needed and those that are free.
    """
    run, path = job.run, job.folder.path
    adapter = sum(info.param.nbytes for info in run.parameters)
    whole = CHECKPOINTS * checkpoint_bytes(run.recipe, run.parameters) + ADAPTERS_KEPT * adapter
    needed = max(0, whole - _held(path))
    what = f"{path}: {CHECKPOINTS} checkpoints and the adapter beside them"
    check_room(path, needed, what, " or give another --out; nothing was written")
    merged = merged_bytes(run.model, run.recipe)
    if merged and free(path) < needed + merged:
        say(
            f"{path}: its disk has room for the checkpoints and none for a merged model, {needed + merged:,} bytes are "
            f"needed for both and {free(path):,} are free; `lrft merge` will need another place"
        )


def merged_bytes(model: CausalLM, recipe: Recipe) -> int:
    """Bytes of the merged model's weights; 0 where the method is no change of a weight."""
    if recipe.adapter is not None and "mergeable" not in ADAPTERS.declared(recipe.adapter.method).provides:
        return 0
    return dense_numbers(model.hf) * DTYPES[recipe.export.dtype or recipe.model.dtype].itemsize


def dense_numbers(hf: nn.Module) -> int:
    """Numbers of the model without its adapters, whatever they are stored in; tied ones count once."""
    counted: set[int] = {id(p) for _, module in adapted(hf) for p in module.adapter.parameters()}
    total, inside = 0, set[int]()  # of frozen maps: what they keep their weight in may be frozen maps too
    for module in hf.modules():
        if isinstance(module, FrozenLinear) and id(module) not in inside:
            inside |= {id(inner) for inner in module.modules()}
            counted |= {id(p) for p in module.parameters()}
            total += module.in_features * module.out_features
            total += 0 if module.bias is None else module.bias.numel()
    return total + sum(p.numel() for p in hf.parameters() if id(p) not in counted)


def _held(folder: Path) -> int:
    """Bytes of what a run has left so far."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
