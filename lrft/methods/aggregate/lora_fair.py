"""LoRA-FAIR: the average of B is corrected towards the average of the changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lrft.core.aggregate import Federation, Reply, Tensors
from lrft.core.params import ParamInfo
from lrft.methods.aggregate.fedavg import FedAvg
from lrft.registry.axes import AGGREGATORS
from lrft.registry.config import Field, Literal, MethodConfig


@AGGREGATORS.register
class LoRAFAIR(FedAvg):
    """LoRA-FAIR: aggregation and initialization refinement. A is averaged, and B is averaged and then corrected.

        A' = sum_k p_k A_k,  B0 = sum_k p_k B_k,  D = sum_k p_k B_k A_k
        B' = B0 + E,  E = argmin_E  1 - cos(D, (B0 + E) A') + `penalty` ||E||_F^2
        closed: E = (D - B0 A') A'^T (A' A'^T + `penalty` I)^-1,  of  ||D - (B0 + E) A'||_F^2 + `penalty` ||E||_F^2

    with p_k as in `fedavg`. (A', B') is the model of the next round, so that nothing begins anew. Neither D nor any
    other (out, in) matrix is formed: both solvers need D A'^T = sum_k p_k B_k (A_k A'^T) and the lengths, which come
    from r x r products. `cosine` descends from E = 0 by `steps` steps at `lr`, halved while a step would not go down.

    Shapes: A (r, in), B, E and D A'^T (out, r).
    Bytes: everything that trains, up and down, for each client and round: as `fedavg`.
    State: none.
    Source: Bian et al., "LoRA-FAIR: Federated LoRA Fine-Tuning with Aggregation and Initialization Refinement", 2024,
    arXiv 2411.14961: the cosine, the penalty and its 0.01, without which results were worse than without E.
    Departures: settled here, as neither was to be had: the norm of the penalty is squared, so that E = 0 where the
    average is exact already, and E is found by plain gradient descent of so many steps. `closed` is of this project.
    """

    requires = {"low_rank", "trained_pair"}

    class Config(FedAvg.Config):
        solver: Literal["cosine", "closed"] = Field(
            "cosine",
            description="likeness of the change by its direction, as published; or squared distance, solved exactly",
        )
        penalty: float = Field(0.01, gt=0, description="how dear it is to leave the average of B")
        steps: int = Field(100, gt=0, le=100_000, description="of the server's descent; of the cosine")
        lr: float = Field(0.01, gt=0, description="rate of that descent")

    def __init__(self, config: MethodConfig, federation: Federation, parameters: Sequence[ParamInfo]) -> None:
        super().__init__(config, federation, parameters)
        if not list(self.pairs()):
            raise ValueError("corrects B of pairs A, B that both train, and there is none")

    def aggregate(self, held: Mapping[str, Tensor], replies: Sequence[Reply], round: int) -> Tensors:
        found, shares = super().aggregate(held, replies, round), self.shares(replies)
        for a, b, _ in self.pairs():
            pairs = [(reply.message[a].double(), reply.message[b].double()) for reply in replies]
            found[b] = (
                found[b] + self._correction(found[a].double(), found[b].double(), pairs, shares).float()
            )
        return found

    def _correction(
        self, A: Tensor, B: Tensor, pairs: Sequence[tuple[Tensor, Tensor]], shares: Sequence[float]
    ) -> Tensor:
        """E: (r, in), (out, r) and those of the clients -> (out, r)."""
        gram = A @ A.T
        target = sum(
            (p * (Bk @ (Ak @ A.T)) for p, (Ak, Bk) in zip(shares, pairs, strict=True)), torch.zeros_like(B)
        )
        if self.config.solver == "closed":
            eye = torch.eye(len(A), dtype=A.dtype, device=A.device)
            found: Tensor = torch.linalg.solve(gram + self.config.penalty * eye, (target - B @ gram).T).T
            return found
        length = _length(pairs, shares)
        return self._descend(B, gram, target, length) if length > 0 and B.any() else torch.zeros_like(B)

    def _descend(self, B: Tensor, gram: Tensor, target: Tensor, length: Tensor) -> Tensor:
        penalty, rate = self.config.penalty, self.config.lr

        def loss(E: Tensor) -> Tensor:
            moved = B + E
            norm = ((moved @ gram) * moved).sum().clamp_min(1e-300).sqrt()
            likeness: Tensor = (moved * target).sum() / (length * norm)
            return 1 - likeness + float(penalty) * E.square().sum()

        E = torch.zeros_like(B)
        for _ in range(self.config.steps):
            moved = B + E
            norm = ((moved @ gram) * moved).sum().sqrt()
            inner = (moved * target).sum()
            slope = (inner / norm.square() * (moved @ gram) - target) / (length * norm) + 2 * penalty * E
            before = loss(E)
            while loss(E - rate * slope) > before and rate > 1e-12:
                rate /= 2
            if rate <= 1e-12:
                break
            E = E - rate * slope
        return E


def _length(pairs: Sequence[tuple[Tensor, Tensor]], shares: Sequence[float]) -> Tensor:
    """||sum_k p_k B_k A_k||_F, from products of the factors alone."""
    A = torch.cat([Ak for Ak, _ in pairs])
    B = torch.cat([p * Bk for p, (_, Bk) in zip(shares, pairs, strict=True)], dim=1)
    return ((B.T @ B) * (A @ A.T)).sum().clamp_min(0).sqrt()
