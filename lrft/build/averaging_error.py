"""How far the model that a server made lies from the average of what its clients made of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lrft.build.trained_values import write
from lrft.core.adapted import adapted
from lrft.core.aggregate import Tensors
from lrft.core.block import AdaptedBlock
from lrft.core.params import ParamInfo
from lrft.model.causal_lm import CausalLM
from lrft.registry.errors import NotMergeable

SHARED = "shared"  # the site of what all adapters have in common, which changes the weights of them all

Change = Tensor | tuple[Tensor, Tensor]
"""The change of one weight: dense (out, in), or as factors A (k, in) and B (out, k) of B A."""


@dataclass(frozen=True)
class AveragingError:
    """Frobenius norms over all weights together.

    Attributes:
        absolute: || sum_k p_k D_k - D ||, D_k the change of the weights by client k, D that by the server's model.
        exact: || sum_k p_k D_k ||.
    """

    absolute: float
    exact: float

    @property
    def relative(self) -> float:
        """Absolute / exact; 0 where nothing changed."""
        return self.absolute / self.exact if self.exact else 0.0


@torch.no_grad()
def averaging_error(
    model: CausalLM,
    infos: Sequence[ParamInfo],
    start: Tensors,
    trained: Sequence[Tensors],
    shares: Sequence[float],
    after: Tensors,
) -> AveragingError:
    """Measured on weights; where an adapter is no change of a weight, on its parameters. `after` stays in the model.

    Args:
        start: what the round began with, from which the change of base weights counts.
        trained: what every client ended with.
        shares: their weights.
    """
    sums: dict[str, Tensor] = {}
    thin: dict[str, list[tuple[Tensor, Tensor]]] = {}
    wholes: dict[str, Tensor] = {}
    for tensors, share in [*zip(trained, shares, strict=True), (after, -1.0)]:
        write(infos, tensors)
        for name, change in _changes(model, infos, start, tensors):
            if isinstance(change, tuple):
                thin.setdefault(name, []).append((change[0].double(), share * change[1].double()))
                continue
            if share < 0:
                wholes[name] = sums[name].clone()
            sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64)) + share * change.double()
    error = sum((float(value.square().sum()) for value in sums.values()), 0.0)
    exact = sum((float(value.square().sum()) for value in wholes.values()), 0.0)
    for pairs in thin.values():
        error += _square(pairs)
        exact += _square(pairs[:-1])
    return AveragingError(error**0.5, exact**0.5)


def _changes(
    model: CausalLM, infos: Sequence[ParamInfo], start: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> Iterator[tuple[str, Change]]:
    """The change of every weight by what is in the model, and of every parameter that is none of a weight's."""
    weights: set[str] = set()
    for site, module in adapted(model.hf):
        if isinstance(
            module, AdaptedBlock
        ):  # of a prompt, a norm, a whole block: no change of one linear map
            continue
        try:
            change: Change = module.factors() or module.change()
        except NotMergeable:
            continue
        weights.add(site)
        yield site, change
    for info in infos:
        if info.site not in weights and not (info.site == SHARED and weights):
            yield info.name, tensors[info.name].double() - start[info.name].double()


def _square(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """|| sum_k B_k A_k ||_F^2, by an orthonormal basis of all A and all B, so that what cancels is not lost."""
    A = torch.cat([a for a, _ in pairs])
    B = torch.cat([b for _, b in pairs], dim=1)
    _, right = torch.linalg.qr(A.T)
    _, left = torch.linalg.qr(B)
    return float((left @ right.T).square().sum())
