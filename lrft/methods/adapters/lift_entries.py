"""LIFT: the entries of the weight that are largest after rank reduction train."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lrft.core.entries import Renewable
from lrft.core.params import Site
from lrft.ops.entries import largest
from lrft.ops.linalg import truncated_svd
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import Field, PlacedConfig


@ADAPTERS.register
class LIFTEntries(Renewable):
    """Low-rank informed sparse fine-tuning: entries that are large in a low-rank approximation of W train.

        W' = W + S
        y  = x W'^T + b

    S is learnt at k = min((in + out) r, in out) places, r = `rank`: at the k largest entries of |W_f|, W_f the best
    approximation of rank f = `filter_rank`. The init of the same name takes them of the pretrained weight,
    `allocate: lift_entries` again of W' every so many steps; what an entry had learnt when it lost its place stays in S
    and rests.

    Shapes: the values (k) = 0, so W' = W at step 0; `places` (k); `left_values` and `left_places` of entries that rest.
    Trains: k numbers per site, as many as a LoRA of rank r has. Memory: 8 bytes a number for value and place, 8 for
    each entry that rests, moments of k numbers; the pass keeps its input and, once entries rest, S's 8 bytes an entry.
    Source: Liu et al., "LIFT the Veil for the Truth: Principal Weights Emerge after Rank Reduction for
    Reasoning-Focused Supervised Fine-Tuning", ICML 2025. The rule is the paper's; every released configuration of the
    authors' code takes the smallest entries instead.
    Departures: S stands beside a base of any storage, where the code writes into W and makes its whole gradient
    (`select: lift` does that here), 4 in out bytes in float32 beside 12 a number for moments and place. Here it is 20 a
    number in all, less up to a quarter of the entries, so on dense bases too. So moments and the norm that gradients
    are clipped by are of k entries, and weight decay, 0 in the paper, pulls differences to 0. W_f is by an exact SVD up
    to 2,048 rows or columns and by a randomised one of 2 f directions above; the code's is exact.
    Advice: `rank: 128`, betas 0.9 and 0.95, learning rate 1e-4 to 2e-4 in the authors' scripts.
    """

    provides = {"adapters", "mergeable", "linear_delta", "placed", "renewable"}
    roles = {"values": "sparse"}

    config: Config

    class Config(PlacedConfig):
        rank: int = Field(128, gt=0, le=65_536, description="of the LoRA that has as many numbers")
        filter_rank: int = Field(
            128, gt=0, le=65_536, description="of the approximation that says which entries are largest"
        )

    def wanted(self, weight: Tensor) -> Tensor:
        rank = self.config.filter_rank
        U, S, Vh = truncated_svd(weight, rank, None, extra=rank)
        return largest(((U * S) @ Vh).abs(), len(self.places))

    @staticmethod
    def count(config: Any, site: Site) -> int:
        return int(
            min(config.rank * (site.in_features + site.out_features), site.in_features * site.out_features)
        )
