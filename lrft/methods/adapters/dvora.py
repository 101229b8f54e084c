"""DVoRA: DoRA whose direction is changed by VeRA's two vectors."""

from __future__ import annotations

from torch import Tensor

from lrft.core.adapter import Shared
from lrft.core.params import Site
from lrft.methods.adapters._decomposed import Decomposed
from lrft.methods.adapters.vera import VeRA
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import Field


@ADAPTERS.register
class DVoRA(Decomposed, VeRA):
    """Weight decomposition over VeRA: magnitude and direction of every output neuron, the direction by two vectors.

        V  = W + diag(v) B diag(u) A,  n = row norms of V,  g = m / n
        W' = g * V
        y  = bias + g * (x W^T + v * ((u * (x A^T)) B^T))
        y  = bias + x W^T + (g - 1) * (d W^T) + g * v * ((u * (d A^T)) B^T),  d = drop(x)       with `dropout` > 0

    with r = `rank`, A and B the frozen random pair of `vera`, cut for all sites from one; n is held constant in the
    backward pass; the bias is never scaled. On a weight in half precision n is expanded as in `dora`, and V is never
    formed.

    Shapes: A (r, in), B (out, r), u (r) = `start` (0.1), v (out) = 0 as in `vera`; m (out) = row norms of W, so g = 1
    and W' = W at step 0.
    Trains: r + 2 out numbers per site.
    Source: Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", 2024, arXiv 2402.09353, where it stands beside
    DoRA; Kopiczko et al., "VeRA", ICLR 2024, arXiv 2310.11454, for the direction.
    Departures: none known; the paper gives DVoRA no equation of its own, settled here: that of DoRA with VeRA's change
    in the place of B A. Its count is the published one.
    """

    provides = {"adapters", "mergeable"}
    roles = {"u": "magnitude", "v": "core", "m": "magnitude"}

    config: Config

    class Config(VeRA.Config):
        rank: int = Field(1024, gt=0, le=65_536)

    def __init__(self, config: VeRA.Config, site: Site, shared: Shared | None = None) -> None:
        super().__init__(config, site, shared)
        self.decompose()

    def gram(self, A: Tensor) -> Tensor:
        """A is frozen, and the same at all sites of a width."""
        return self.bases[0].gram("A", self.site.in_features)

    @staticmethod
    def count(config: VeRA.Config, site: Site) -> int:
        return VeRA.count(config, site) + site.out_features
