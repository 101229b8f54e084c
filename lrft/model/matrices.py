"""Where the numbers of a model's matrices are, and which of them no adapter and no storage reaches."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from lrft.model.causal_lm import CausalLM
from lrft.model.experts import splits
from lrft.model.sites import linear_shape


@dataclass(frozen=True)
class Matrices:
    """The numbers in a model's matrices: parameters of two dimensions or more, embeddings and head left out.

    Attributes:
        linear: numbers in linear layers, which adapters can go on and few bits can hold.
        others: parameter -> numbers, of those that are no linear layer's (experts held as one tensor of three
            dimensions, convolutions), or whose layer nothing can stand in for.
        experts: those of them that `model.experts: split` makes linear layers.
    """

    linear: int
    others: dict[str, int]
    experts: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """All of them."""
        return self.linear + sum(self.others.values())

    @property
    def unreached(self) -> float:
        """The share that neither an adapter nor the quantization section can reach."""
        return 1 - self.linear / self.total if self.total else 0.0

    def sentence(self) -> str:
        """What is not reached, for the user; empty where it is next to nothing."""
        if self.unreached < 0.001:
            return ""
        largest = sorted(self.others, key=lambda name: -self.others[name])
        kinds = list(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in largest))
        return (
            f"{self.unreached:.1%} get neither, being no linear layers or read by the model's own code: "
            f"{', '.join(kinds[:3])}{', ...' if len(kinds) > 3 else ''}{self._remedy()}"
        )

    def _remedy(self) -> str:
        share = sum(self.others[name] for name in self.experts) / self.total
        return f"; model.experts: split reaches {share:.1%}" if self.experts else ""


def matrices(model: CausalLM) -> Matrices:
    """Where the numbers of a model's matrices are, before adapters are put on it."""
    embeddings = [module for module in model.hf.modules() if isinstance(module, nn.Embedding)]
    outside = [*embeddings, model.hf.get_output_embeddings()]
    skipped = {id(parameter) for module in outside if module is not None for parameter in module.parameters()}
    linear = {
        id(module.weight) for module in model.hf.modules() if linear_shape(module) is not None
    } - skipped
    sizes = {name: p for name, p in model.hf.named_parameters() if p.ndim >= 2 and id(p) not in skipped}
    return Matrices(
        sum(p.numel() for p in sizes.values() if id(p) in linear),
        {name: p.numel() for name, p in sizes.items() if id(p) not in linear},
        tuple(splits(model.hf)),
    )
