"""In every process of a launch: gradients of a small model summed in buckets and at once, as tensors in OUT-RANK.pt."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor, distributed, nn

from lrft.training import gradient_sum
from lrft.training.gradient_sum import GradientSum

# Case: micro-batches of each process. A batch is (rows, uses the gate).
UNEVEN = {
    "even": ([(3, True), (2, True)], [(4, True), (1, True)]),
    "one has none": ([(3, True)], []),
    "three and one": ([(3, True), (1, True), (2, True)], [(5, True)]),
    "unused on one": ([(3, True), (2, False)], [(4, False), (1, False)]),
    "unused on both": ([(3, False)], [(4, False)]),
}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.ModuleList([nn.Linear(24, 24) for _ in range(6)])
        self.gate = nn.Linear(24, 24)
        self.coarse = nn.Parameter(torch.randn(24).bfloat16())
        self.rests = nn.Parameter(torch.randn(24))

    def forward(self, x: Tensor, gated: bool) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x)) * self.coarse.float()
        return (self.gate(x) if gated else x).square().sum()


def backward(model: Model, batches: list[tuple[int, bool]], rank: int, last: Callable | None) -> None:
    for index, (rows, gated) in enumerate(batches):
        x = torch.randn(rows, 24, generator=torch.Generator().manual_seed(100 * rank + index))
        loss = model(x, gated)
        if last is not None and index == len(batches) - 1:
            with last():
                loss.backward()
        else:
            loss.backward()


def flat_sums(model: Model) -> dict[str, Tensor | None]:
    """Every gradient in one message, which is what buckets have to equal."""
    named = dict(model.named_parameters())
    flat = torch.cat(
        [
            *((torch.zeros_like(p) if p.grad is None else p.grad).float().flatten() for p in named.values()),
            torch.tensor([float(p.grad is not None) for p in named.values()]),
        ]
    )
    distributed.all_reduce(flat)
    *sums, counts = flat.split([*(p.numel() for p in named.values()), len(named)])
    return {
        name: part.view_as(p).to(p.dtype) if count > 0 else None
        for (name, p), part, count in zip(named.items(), sums, counts, strict=True)
    }


def bucket_sums(
    batches: list[tuple[int, bool]], rank: int, bucket_bytes: int
) -> tuple[dict[str, Tensor | None], int, int]:
    """The sums, how many buckets there were, and how many of them the backward pass itself had sent."""
    model = Model()
    gradients = GradientSum(list(model.parameters()), bucket_bytes)
    backward(model, batches, rank, gradients.overlapped)
    early = gradients.sent
    gradients.finish()
    return {name: p.grad for name, p in model.named_parameters()}, len(gradients.buckets), early


def main() -> None:
    distributed.init_process_group("gloo")
    rank, found = distributed.get_rank(), {}
    for case, parts in UNEVEN.items():
        model = Model()
        backward(model, parts[rank], rank, None)
        sums, buckets, early = bucket_sums(parts[rank], rank, 4000)
        again, _, _ = bucket_sums(parts[rank], rank, 4000)
        whole, one, _ = bucket_sums(parts[rank], rank, gradient_sum.BUCKET_BYTES)
        found[case] = {
            "flat": flat_sums(model),
            "buckets": sums,
            "again": again,
            "whole": whole,
            "counts": (buckets, early, one),
        }
    torch.save(found, f"{sys.argv[1]}-{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
