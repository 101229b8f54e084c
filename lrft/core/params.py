"""Names for the places where adapters attach and for the parameters they bring."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from lrft.registry.errors import RecipeError

# Kinds of site -> what they are. An adapter that asks for another one is refused by name.
KINDS = {
    "linear": "a linear map, seen as (out, in)",
    "expert": "a matrix of one expert of a mixture, seen as (out, in); its inputs are the tokens that chose the expert",
    "mlp": "a whole feed-forward block: in and out are the hidden size, inner the width between",
    "embedding": "the input embedding: in is the vocabulary, out the hidden size",
    "norm": "a norm with a weight for every channel: in and out are its width",
    "attention": "a whole attention: in is the hidden size, out the width of its keys and of its values",
}
HOLDERS = ("mlp",)  # kinds whose own linear layers are then no sites
MATRICES = ("linear", "expert")  # kinds that are one linear layer


@dataclass(frozen=True)
class Site:
    """One place an adapter attaches to, a linear map of the base model unless `kind` says otherwise (`KINDS`)."""

    name: str
    in_features: int
    out_features: int
    has_bias: bool = False
    kind: str = "linear"
    inner_features: int = 0

    @property
    def is_matrix(self) -> bool:
        """Whether it is one linear layer."""
        return self.kind in MATRICES


@dataclass(frozen=True)
class ParamInfo:
    """A trainable parameter with what an optimizer may want to know of it.

    Attributes:
        role: what the tensor is. Of adapters: `lora_A`, `lora_B`, `core` (between A and B), `magnitude`, `router`.
            Of the base model: `matrix` (a linear layer of a block), `matrices` (several in one tensor of three
            dimensions, as of experts), `embedding`, `head`, `vector` (norms, biases, and what is none of these).
        site: the adapter's site, empty for base parameters.
        scaling: s of the low-rank term s B A that the parameter is a factor of.
        partner: the other factor of that term, trained or frozen: A of a B, B of an A.
        block: path of the decoder layer the parameter stands in (`model.layers.3`), empty outside of them.
        sparse: it is of tokens, or of features of rows, that the first steps may not hold, or of an expert or another
            adapter that they may pass by, and then has no gradient in them.
        head_rows: of a base weight whose rows are queries or keys, how many rows a head has; 0 elsewhere.
        transposed: it is a base weight that the model stores as (in, out), or as several of these.
    """

    name: str
    param: nn.Parameter
    role: str
    site: str = ""
    scaling: float = 1.0
    partner: Tensor | None = None
    block: str = ""
    sparse: bool = False
    head_rows: int = 0
    transposed: bool = False


def count(parameters: Iterable[nn.Parameter]) -> int:
    """How many numbers these parameters hold."""
    return sum(parameter.numel() for parameter in parameters)


def check_single(parameters: Iterable[ParamInfo], what: str) -> None:
    """Refuse tensors that hold several matrices each to a method of single ones.

    Args:
        what: the recipe's words for the method, such as `select: lift`.

    Raises:
        RecipeError: names the first.
    """
    several = next((info for info in parameters if info.role == "matrices"), None)
    if several is not None:
        raise RecipeError(
            f"{several.name} holds a matrix of every expert in one tensor, and {what} is of single matrices; write "
            "model.experts: split, or patterns that leave it out, such as ['*attn*']",
            "trainable.weights",
        )
