"""`offload` of a recipe: what of a training lies on a disk, from before its model is loaded until it is over."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from lrft.build.measure import measure
from lrft.build.steps import full_shape
from lrft.core.params import ParamInfo
from lrft.core.shelf import aligned
from lrft.data.steps import Shape
from lrft.files.pages import PageFile
from lrft.model.causal_lm import CausalLM
from lrft.model.load import DTYPES, load_model
from lrft.model.paged_activations import PagedActivations
from lrft.model.paged_weights import PagedWeights
from lrft.recipe.offload_section import why_not
from lrft.recipe.schema import Recipe
from lrft.registry.axes import ADAPTERS
from lrft.registry.errors import RecipeError
from lrft.training.paged_state import PagedState

SLACK = 2**20  # bytes a layer for what begins at a page of its own


class Offloading:
    """The file of one training and what lies in it; a part that stays in memory is None.

    Args:
        file: where.

    Attributes:
        weights, activations, state: see there.
    """

    def __init__(self, recipe: Recipe, file: PageFile) -> None:
        self.recipe, self.file = recipe, file
        parts = recipe.offload.parts
        self.weights = PagedWeights(file) if "weights" in parts else None
        self.activations = PagedActivations(file) if "activations" in parts else None
        self.state: PagedState | None = None

    def watch(self, model: CausalLM, shapes: Iterable[Shape]) -> None:
        """Let the layers of a model that is ready to train keep their inputs in the file.

        Args:
            shapes: of the micro-batches.

        Raises:
            RecipeError: the model's code cannot.
            WriteError: the disk is full.
        """
        if self.activations is not None:
            self.activations.settle(
                model.hf, max(input_bytes(self.recipe, model, shape) for shape in set(shapes))
            )

    def keep_state(self, optimizer: torch.optim.Optimizer, infos: list[ParamInfo]) -> torch.optim.Optimizer:
        """The optimizer, with its state in the file where the recipe asks for it."""
        if "optimizer" not in self.recipe.offload.parts:
            return optimizer
        self.state = PagedState(optimizer, infos, self.file)
        return self.state

    def sentence(self) -> str:
        """What lies where, for the user."""
        held = "" if self.weights is None else f" ({self.weights.bytes / 1e9:.2f} GB of frozen weights)"
        return f"offload: {' and '.join(self.recipe.offload.parts)} in a file of {self.file.folder}{held}"

    def close(self) -> None:
        """Bring and write nothing more, and let the file go."""
        for part in (self.weights, self.activations, self.state, self.file):
            if part is not None:
                part.close()


@contextmanager
def offloading(
    recipe: Recipe, run: Path, device: torch.device, processes: int = 1, trust_remote_code: bool = False
) -> Iterator[Offloading | None]:
    """The room for what a recipe keeps elsewhere, taken from the disk before anything is loaded; None for nothing.

    Args:
        run: the folder, for a recipe that names no other.

    Raises:
        RecipeError: nothing can lie there while this device computes, or several processes train.
        WriteError: the disk has no room for it.
    """
    asked = recipe.offload
    if not asked.parts:
        yield None
        return
    for part in asked.parts:
        if message := why_not(getattr(asked, part), device.type):
            raise RecipeError(message, f"offload.{part}")
    if processes > 1:
        message = "is of one process, and several train here; write none, or start one"
        raise RecipeError(message, f"offload.{asked.parts[0]}")
    model = load_model(recipe.model, device=device, trust_remote_code=trust_remote_code, meta=True)
    needed = room_of(recipe, model)
    found = Offloading(
        recipe, PageFile(run if asked.folder is None else Path(asked.folder).expanduser(), needed)
    )
    try:
        yield found
    finally:
        found.close()


def room_of(recipe: Recipe, model: CausalLM) -> int:
    """Bytes that the file may need, full rows taken for granted.

    Args:
        model: the base model without weights.
    """
    parts = recipe.offload.parts
    counted = measure(recipe, model, optimizer="optimizer" in parts)
    layers = model.hf.config.get_text_config().num_hidden_layers
    full = full_shape(recipe)
    needed = {
        "weights": counted["weight_bytes"],
        "activations": layers * input_bytes(recipe, model, full),
        "optimizer": counted["optimizer_bytes"],
    }
    return sum(needed[part] + layers * SLACK for part in parts)


def input_bytes(recipe: Recipe, model: CausalLM, shape: Shape) -> int:
    """Bytes of the hidden states that go into a layer, virtual tokens among them."""
    adapter = recipe.adapter
    count = 0 if adapter is None else ADAPTERS.get(adapter.method).virtual_tokens(adapter)
    tokens = shape.rows * (shape.length + count * -(-len(shape.documents) // shape.rows))
    width = model.hf.config.get_text_config().hidden_size
    return aligned(tokens * width * DTYPES[recipe.model.dtype].itemsize)
