"""L4Q: what is trained is merged first and rounded then, with the step of the rounding trained too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lrft.core.adapter import Adapter
from lrft.core.frozen import FrozenLinear
from lrft.core.params import Site
from lrft.methods.adapters._groups import check_groups
from lrft.methods.adapters._pair import empty_pair, start_pair
from lrft.ops.merged_matmul import merged_linear
from lrft.ops.straight_through import round_through
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field, Literal

TINY = 1e-8  # the step of a group of zeros, and the least that a step is divided by


@ADAPTERS.register
class L4Q(Adapter):
    """LoRA-wise learned step size quantization: the sum of weight and adapter is rounded, and the step trains.

        V  = W + s B A
        v  = (V - b) / q,  n = round(min(max(v, -N), P)),  N = 2^(bits - 1),  P = N - 1
        W' = q n + b
        y  = x W'^T

    with s = `alpha` / r, r = `rank`; q and b, a step and an offset, are those of each `group_size` consecutive weights
    of a row. The rounding passes gradients on, the bounds cut them off: with G = dL/dW' and M = 1 where -N <= v <= P,

        dA = s B^T (G * M),  dB = s (G * M) A^T
        dq = sum over the group of G * (n - v where M, else n),  db = sum over the group of G * (1 - M)

    So W' has `bits` bits a weight from the first step to the merge: training sees what is merged, whatever the storage
    of W. The layer's own bias is added as it is.

    Shapes: A (r, in) ~ U(-1/sqrt(in), 1/sqrt(in)), B (out, r) = 0; q, b (out, in / `group_size`), q = the larger of
    |min W| / N and |max W| / P of the group, b = 0. So W' at step 0 is W rounded to nearest, no weight cut off.
    Trains: r (in + out) + 2 out in / `group_size` numbers per site. The pass keeps x alone: W' and G are formed again
    in the backward pass, layer by layer, and freed.
    Source: Jeon et al., "L4Q: Parameter Efficient Quantization-Aware Training on Large Language Models via LoRA-wise
    LSQ", 2024, arXiv 2402.04902, known here by two descriptions of its text that agree; a public code of the layer,
    whose authors are not known, gives the same outputs, dA, dB and, up to a factor, dq.
    Departures: settled here: LSQ's factor 1 / sqrt(N P) on dq is left out, as the formulas have none and Adam's steps
    do not depend on it; that code has one on dq and db, whose value it does not say. `alpha` is that of LoRA here, the
    paper's is not known. b begins to move where weights are cut off. No dropout, which has no place in a merged weight;
    no warm-up of the factors before the rounding, which the paper found to change little.
    Advice: 4 and 3 bits are the paper's, with groups of 128. `lrft merge` writes W' as dense weights, on the grid to
    the last bit with `--dtype float32`. No weight decay, which would pull the steps to 0.
    """

    aliases = {
        "lora_wise_lsq qat_lora quantization_aware_lora": "adapter: l4q",
    }
    provides = {"adapters", "mergeable", "moved_start"}
    requires = {"one_stage"}
    roles = {"A": "lora_A", "B": "lora_B", "q": "magnitude", "b": "vector"}

    config: Config

    class Config(AdapterConfig):
        rank: int = Field(4, gt=0, le=65_536)
        alpha: float = Field(8.0, gt=0, le=1_000_000)
        bits: Literal[2, 3, 4, 5, 6, 7, 8] = Field(4, description="bits of a merged weight")
        group_size: int = Field(
            128, gt=0, description="weights of a row that share a step; divides the inputs"
        )

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        check_groups(config.group_size, site)
        self.scaling = config.alpha / config.rank
        self.A, self.B = empty_pair(config.rank, site)
        groups = site.out_features, site.in_features // config.group_size
        self.q = nn.Parameter(torch.full(groups, TINY))
        self.b = nn.Parameter(torch.zeros(groups))
        self.low, self.high = -(2 ** (config.bits - 1)), 2 ** (config.bits - 1) - 1
        self.reset()

    def reset(self) -> None:
        start_pair(self.A, self.B)

    @torch.no_grad()
    def start(self, weight: Tensor) -> None:
        groups = self._grouped(weight.float())
        least, most = groups.amin(-1) / self.low, groups.amax(-1) / self.high
        self.q.copy_(torch.maximum(least.abs(), most.abs()).clamp_min(TINY))
        self.b.zero_()

    def merged(self, weight: Tensor) -> Tensor:
        step, offset = _away_from_zero(self.q)[..., None], self.b[..., None]
        exact = self._grouped(torch.addmm(weight.float(), self.B, self.A, alpha=self.scaling))
        codes = round_through(((exact - offset) / step).clamp(self.low, self.high))
        return (codes * step + offset).view(weight.shape).to(weight.dtype)

    def delta_weight(self, weight: Tensor) -> Tensor:
        return (self.merged(weight.float()) - weight).to(weight.dtype)

    def forward(self, x: Tensor, base: FrozenLinear) -> Tensor:
        return merged_linear(x, base, self.merged, self.parameters())

    def _grouped(self, weight: Tensor) -> Tensor:
        """(out, in) -> (out, groups, size)."""
        return weight.view(len(weight), -1, self.config.group_size)

    @staticmethod
    def count(config: Any, site: Site) -> int:
        groups = site.out_features * site.in_features // config.group_size
        return int(config.rank * (site.in_features + site.out_features) + 2 * groups)


def _away_from_zero(step: Tensor) -> Tensor:
    """A step that is never 0; training may take it through."""
    return torch.where(step.abs() < TINY, TINY, step)
