"""BOFT: the inputs of a layer are rotated by a product of sparse rotations, as in a butterfly network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lrft.core.adapter import Adapter, PeftForm
from lrft.core.frozen import FrozenLinear
from lrft.core.params import Site
from lrft.ops.low_rank import gain_columns
from lrft.ops.turns import Mixing, folded, moved, turned_linear
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field
from lrft.registry.json import Json


def boft_form_keys(config: BOFT.Config, with_start: bool) -> dict[str, Json]:
    """PEFT's keys of the method."""
    return {
        "peft_type": "BOFT",
        "boft_block_size": config.block_size,
        "boft_block_num": 0,
        "boft_n_butterfly_factor": config.butterfly_factor,
        "boft_dropout": config.dropout,
    }


def boft_form_tensors(adapter: BOFT, start: BOFT | None) -> dict[str, Tensor]:
    """PEFT has the gains as a column."""
    own: dict[str, Tensor] = adapter.state_dict()
    return own | {"g": own["g"][:, None]}


def has_one_factor(adapter: BOFT) -> bool:
    """Whether PEFT computes as much: without a compiler for CUDA it takes one factor, whatever it is told."""
    return bool(adapter.config.butterfly_factor == 1)


FOLDED = 64  # inputs; products with blocks up to this size take less time than several with smaller ones


@ADAPTERS.register
class BOFT(Adapter):
    """Butterfly orthogonal fine-tuning: the weight times m block-diagonal rotations of permuted inputs, rows scaled.

        W' = diag(g) W R^T,  R = F_m ... F_1,  F_i = P_i diag(C_i1, ..., C_ik) P_i^T
        C  = (I - S) (I + S)^-1,  S = (Q - Q^T) / 2      Cayley's map, block by block
        y  = g * (x R) W^T + b

    with b = `block_size`, k = in / b, m = `butterfly_factor`. P_i cuts the inputs into groups of 2^(i - 1) b and each
    group into pieces of b / 2, of which those at even places come first; P_1 is the identity. So an output of R depends
    on 2^(m - 1) b inputs, of which in has to be a multiple; m = 1 is OFT with gains. F - I is formed as -2 S (I +
    S)^-1, exact for small S. In training int(`dropout` k) blocks of one factor, drawn anew each time, are the identity.

    Shapes: Q (m, k, b, b) = 0, so F = I, and g (out) = 1; W' = W at step 0.
    Trains: m b in + out numbers per site, of which m (b - 1) in / 2 + out can be told apart: of Q its skew part counts.
    x and the outputs of W are kept for the backward pass, no factor's own. Where an output depends on up to 64 inputs,
    the factors are made one block-diagonal matrix before it meets x.
    Source: Liu et al., "Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization", ICLR 2024, arXiv
    2311.06243; permutations, order of the factors, gains and count are those of the authors' layer in PEFT, checked on
    the same numbers.
    Departures: m is 2 by default, where PEFT has 1. PEFT computes m > 1 with a CUDA extension alone, and takes m = 1
    without; so there is a PEFT form for m = 1 alone.
    """

    aliases = {"butterfly_oft": "adapter: boft"}
    provides = {"adapters", "mergeable"}
    roles = {"Q": "core", "g": "magnitude"}
    peft = PeftForm(
        boft_form_keys,
        boft_form_tensors,
        names={"Q": "boft_R", "g": "boft_s"},
        transposed=False,
        holds=has_one_factor,
    )

    config: Config

    class Config(AdapterConfig):
        block_size: int = Field(4, gt=1, description="side of the blocks")
        butterfly_factor: int = Field(
            2, gt=0, le=32, description="how many rotations there are; 1 is OFT with gains"
        )
        dropout: float = Field(
            0.0, ge=0, lt=1, description="share of the blocks of a factor that training leaves out"
        )

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        b, m, width = config.block_size, config.butterfly_factor, site.in_features
        reach = b * 2 ** (m - 1)
        if width % reach or (m > 1 and b % 2):
            near = [
                d for d in range(2, width + 1) if width % (d * 2 ** (m - 1)) == 0 and (m == 1 or d % 2 == 0)
            ]
            remedy = (
                f"use block_size {min(near, key=lambda d: abs(d - b))}" if near else "use butterfly_factor 1"
            )
            even = "even, and " if m > 1 else ""
            raise ValueError(
                f"block_size {b} has to be {even}times {2 ** (m - 1)} a divisor of the {width} inputs; {remedy}"
            )
        self.reach = reach
        self.Q = nn.Parameter(torch.zeros(m, width // b, b, b))
        self.g = nn.Parameter(torch.ones(site.out_features))
        for i in range(1, m):
            order = butterfly(width, b, i)
            self.register_buffer(f"order{i}", order, persistent=False)
            self.register_buffer(f"back{i}", order.argsort(), persistent=False)

    def reset(self) -> None:
        nn.init.zeros_(self.Q)
        nn.init.ones_(self.g)

    def delta_weight(self, weight: Tensor) -> Tensor:
        dense = weight.float()
        added = moved(dense, self.turns().mT, self.mixings())
        change = (self.g - 1)[:, None] * dense + self.g[:, None] * torch.stack(added).sum(0)
        return change.to(weight.dtype)

    def forward(self, x: Tensor, base: FrozenLinear) -> Tensor:
        """Factors act on x from the last to the first."""
        turns, mixings = self._dropped(self.turns()).flip(0), self.mixings()[::-1]
        if len(turns) > 1 and self.reach <= FOLDED:
            turns, mixings = folded(turns, mixings, self.reach)[None], (Mixing(),)
        y = gain_columns(turned_linear(x, base, turns, mixings), self.g)
        return y if base.bias is None else y + base.bias

    def turns(self) -> Tensor:
        """F - I of every block, (m, k, b, b) float32."""
        S = (self.Q - self.Q.mT) / 2
        eye = torch.eye(S.shape[-1], device=S.device)
        turns: Tensor = torch.linalg.solve(eye + S, -2 * S)  # the two commute
        return turns

    def mixings(self) -> tuple[Mixing, ...]:
        """Which inputs the blocks of every factor mix."""
        buffers = ((self.get_buffer(f"order{i}"), self.get_buffer(f"back{i}")) for i in range(1, len(self.Q)))
        return Mixing(), *(Mixing(*pair) for pair in buffers)

    def _dropped(self, turns: Tensor) -> Tensor:
        count = int(self.config.dropout * turns.shape[1])
        if not self.training or count == 0:
            return turns
        factor = int(torch.randint(len(turns), (1,)))
        kept = torch.ones(turns.shape[:2])
        kept[factor, torch.randperm(turns.shape[1])[:count]] = 0
        return turns * kept.to(turns.device)[:, :, None, None]

    @staticmethod
    def count(config: Config, site: Site) -> int:
        return config.butterfly_factor * config.block_size * site.in_features + site.out_features


def butterfly(width: int, block_size: int, level: int) -> Tensor:
    """The inputs in the order of the blocks of the factor at `level` 0, 1, ..., (width,) int64."""
    pieces = torch.arange(width).view(-1, 2 ** (level + 1), block_size // 2)  # (groups, pieces, inputs)
    sorted_pieces = torch.cat([pieces[:, ::2], pieces[:, 1::2]], dim=1)
    return sorted_pieces.flatten().argsort()
