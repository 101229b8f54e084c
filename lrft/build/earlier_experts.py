"""Adapters that PEFT holds on tensors of experts, taken apart: one for the matrix of every expert."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from torch import Tensor

from lrft.model.apart import DOWN
from lrft.model.take_over import KEY
from lrft.registry.errors import RecipeError

INSIDE = ".base_layer"
Held = dict[str, dict[str, Tensor]]


def of_experts(
    found: Held, parameters: Collection[str], sites: Collection[str], rank: Callable[[str], int]
) -> tuple[Held, dict[str, str]]:
    """The tensors by site, and site -> tensor of experts that it is of; `lrft.export.expert_form` says how they stand.

    Args:
        found: path in PEFT's file -> A and B.
        parameters: `target_parameters`, whole names of tensors or their ends.
        sites: those that the new adapter goes on.
        rank: of an expert's adapter, by the name of the tensor.

    Raises:
        RecipeError: the new adapter goes on no expert, or the file holds other tensors than it says.
    """
    apart: Held = {name: held for name, held in found.items() if name in sites}
    of: dict[str, str] = {}
    for block in dict.fromkeys(name.replace(INSIDE, "") for name in found if name not in sites):
        if not any(site.startswith(f"{block}.") for site in sites):
            raise RecipeError(
                f"changes {block}, which gets no adapter here; write model.experts: split where these are experts, and "
                "name their matrices in adapter.targets",
                KEY,
            )
        for path, tensor in _places(block, parameters, found).items():
            A, B = found[path]["A"], found[path]["B"]
            experts, left = divmod(A.shape[0], rank(tensor))
            if left or B.shape[1] != A.shape[0]:
                raise RecipeError(f"holds factors of {tensor} of another rank than its configuration", KEY)
            name = tensor.rpartition(".")[2]
            for number in range(experts):
                site = f"{block}.{number}.{name}"
                own = {"A": A.chunk(experts)[number], "B": B.unflatten(1, (-1, experts))[..., number]}
                apart[site], of[site] = own, tensor
    return apart, of


def _places(block: str, parameters: Collection[str], found: Mapping[str, object]) -> dict[str, str]:
    """Path in the file -> tensor of experts: the one that is met first stands inside the other."""
    ends = {
        name.rpartition(".")[2]
        for name in parameters
        if f".{block}.".endswith(f".{name.rpartition('.')[0]}.")
    }
    order = sorted(ends, key=lambda name: name == DOWN, reverse=True)
    places = {block + INSIDE * depth: f"{block}.{name}" for depth, name in enumerate(order)}
    if there := {path for path in found if path.replace(INSIDE, "") == block} ^ places.keys():
        raise RecipeError(f"holds {min(there)}, or should, by its target_parameters", KEY)
    return places
