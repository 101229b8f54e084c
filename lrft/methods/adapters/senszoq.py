"""SensZOQ: the few entries of the weight that are most sensitive train, and everything else rests in few bits."""

from __future__ import annotations

from torch import Tensor

from lrft.core.adapter import Additive
from lrft.core.frozen import FrozenLinear
from lrft.methods.adapters._share_of_entries import ShareOfEntries
from lrft.ops.entries import entries_linear
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import Field


@ADAPTERS.register
class SensZOQ(ShareOfEntries):
    """Sensitive entries for zeroth-order descent: one entry in a thousand trains beside a quantized rest.

        W' = Q(W - S_0) + S,  S_0 = W where M, else 0
        y  = x W'^T + b

    with M the k entries that `init: senszoq` chooses once, Q the storage (`quantization`), S = S_0 at step 0: so the
    entries of M have their exact values and are counted once, and every other is rounded once and never changes. That
    is `init: {method: senszoq, residual: rewrite}`; without `residual` a quantized base keeps Q(W) whole and the
    entries begin at their rounded values, W' = Q(W) + S - S_0. k = `entries` or, without it, `share` of the entries of
    W, rounded, one at the least.

    Shapes: the values of S (k), `places` (k). On a dense base W' = W at step 0.
    Trains: k numbers per site. Memory: 8 bytes a number for value and place, 8 more for S_0; `optimizer: mezo` keeps no
    state and perturbs these k alone. The pass keeps its input, where it keeps anything.
    Source: Guo et al., "Zeroth-Order Fine-Tuning of LLMs with Extreme Sparsity", 2024, arXiv 2406.02913 (ICLR 2025 as
    "... with Transferable Static Sparsity"), known here by its abstract and the authors' public notes.
    Departures: settled here: what trains beside the entries (nothing) and where k is counted, which is a setting of the
    init. The rest is in the formats of `quantization`, NF4 say, where the paper has 4 bits by SqueezeLLM. Values are
    float32 where the paper has 16 bits, so that an update below half a unit in the last place is not lost. Linear
    layers alone.
    Advice: `quantization: nf4`, `optimizer: mezo`, `share: 0.001`; the authors search learning rates of 1e-7 to 1e-6
    for all weights, and say that on mathematics 0.01 is what holds half of the squared gradient.
    """

    aliases = {
        "sensitive_sparse_zo zo_extreme_sparsity": "quantization: nf4\nadapter: senszoq\n"
        "init: {method: senszoq, residual: rewrite}\noptimizer: mezo\ntrain: {clip: null}",
    }
    provides = {"adapters", "mergeable", "linear_delta", "placed"}

    config: Config

    class Config(ShareOfEntries.Config):
        share: float = Field(0.001, gt=0, le=1, description="share of the entries that train")

    def forward_since(self, start: Additive, x: Tensor, base: FrozenLinear) -> Tensor:
        """The difference of the values is formed in float32: two products in bfloat16 would drown a small one."""
        assert isinstance(start, SensZOQ)
        values, dtype = self.values - start.values, self.compute_dtype or x.dtype
        return entries_linear(x, base, values, self.places, self.shape, dtype)
