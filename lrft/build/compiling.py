"""Whether a run is long enough for its elementwise parts to be compiled."""

from __future__ import annotations

from lrft.build.adapt import Adaptation
from lrft.model.gguf import cache_root
from lrft.ops.compiled import can_compile
from lrft.recipe.schema import Recipe

# Compiling takes a minute of a CPU the first time on a machine, and saves about a tenth of a step: on two cores that
# is a hundred thousand tokens of a model of 1e8 numbers.
WORTH = 1e13


def worth_compiling(recipe: Recipe, adaptation: Adaptation, steps: int) -> bool:
    """Whether norms, gates and rotations are compiled; it depends on the recipe and the machine, never on the moment.

    A run that would be, and cannot for want of a compiler, says so in a note and goes on without.
    """
    settings = recipe.train
    rows = settings.batch_size * settings.gradient_accumulation
    tokens = steps * rows * settings.max_length
    if (
        adaptation.model.device.type == "cpu"
    ):  # which has kernels that are built in seconds (`lrft.build.native`)
        return False
    if recipe.model.compile or tokens * adaptation.matrices.total < WORTH:
        return False
    if reason := can_compile(cache_root().parent / "compiled"):
        adaptation.notes.append(f"norms, gates and rotations are not compiled, steps take longer ({reason})")
        return False
    return True
