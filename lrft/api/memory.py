"""Out of memory: which settings to change, cheapest first."""

from __future__ import annotations

from types import TracebackType

from lrft.recipe.schema import Recipe
from lrft.registry.errors import OutOfMemory


class memory_advice:
    """Turns an out-of-memory error into the settings that free most, cheapest first."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def __enter__(self) -> None:
        return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import torch

        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
            settings = self.recipe.train
            advice = []
            if settings.batch_size > 1:
                half = settings.batch_size // 2
                advice.append(
                    f"train.batch_size={half} train.gradient_accumulation={settings.gradient_accumulation * 2} "
                    "(same result)"
                )
            if self.recipe.model.activation_checkpointing is not True:
                advice.append("model.activation_checkpointing=true")
            advice.append(f"train.max_length={settings.max_length // 2}")
            raise OutOfMemory(
                f"out of memory; in the order that costs least: {', then '.join(advice)}"
            ) from None
