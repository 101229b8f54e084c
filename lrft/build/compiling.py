"""Whether a run is long enough for its elementwise parts to be compiled."""

from __future__ import annotations

from lrft.build.adapt import Adaptation
from lrft.model.gguf import cache_root
from lrft.ops.compiled import can_compile
from lrft.recipe.schema import Recipe

# Compiling takes a minute the first time on a machine. A CPU has kernels that are built in seconds instead
# (`lrft.build.native`).
WORTH = 1e13


def worth_compiling(recipe: Recipe, adaptation: Adaptation, steps: int) -> bool:
    """Whether norms, gates and rotations are compiled, on a GPU; it depends on the recipe and the machine alone.

    A run that would be, and cannot for want of a compiler, says so in a note and goes on without.
    """
    settings = recipe.train
    rows = settings.batch_size * settings.gradient_accumulation
    tokens = steps * rows * settings.max_length
    if (
        adaptation.model.device.type == "cpu"
        or recipe.model.compile
        or tokens * adaptation.matrices.total < WORTH
    ):
        return False
    if reason := can_compile(cache_root().parent / "compiled"):
        adaptation.notes.append(f"norms, gates and rotations are not compiled, steps take longer ({reason})")
        return False
    return True
