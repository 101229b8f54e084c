"""Q-GaLore: GaLore with its projections in 4 bits, and chosen the more rarely the less they move."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lrft.methods.optim._projection import SIDES, Basis
from lrft.methods.optim._torch import State
from lrft.methods.optim.galore import GaLore
from lrft.ops.bits import pack_nibbles, unpack_nibbles
from lrft.ops.uniform import Grid
from lrft.registry.axes import OPTIMIZERS
from lrft.registry.config import Field, Literal

BITS = 4


@OPTIMIZERS.register
class QGaLore(GaLore):
    """Quantized GaLore: 4-bit projections, 8-bit moments, and an interval of its own for every matrix.

        every T steps:  P = the first r right singular vectors of G,  C = codes of P,  R = G P~^T
        P~ = q (C - z),  q = (max - min) / 15,  z = round(-min / q)         a group of `group` numbers at a time
        T <- gamma T  where the mean of the last K of |cos(p, p')| is at least `cosine`

    with max and min of a group 0 among its numbers; p the first row of P before it is coded, p' that of the choice
    before; K = `queue`, gamma = `slower`, T = `update_every` at first, r = `rank`. All else, and the sides, is as in
    `galore` with P~ in the place of P; `bits: 32` keeps the moments as `state_dtype` says.

    Shapes: P (r, in), or (out, r) where out < in; C as P, p (in) or (out).
    State: 2 r max(out, in) numbers of moments a projected matrix, of 1 + 4/256 bytes (4 below 4096); of P 1/2 byte a
    number, and for each group q in the gradient's dtype and z in a byte; p in that dtype. Elsewhere as in `galore`.
    Source: Zhang et al., "Q-GaLore: Quantized GaLore with INT4 Projection and Layer-Adaptive Low-Rank Gradients",
    2024, arXiv 2407.08296; numbers as the authors' q-galore-torch 1.0.
    Departures: the authors' code keeps a 4-bit code in a byte, and compares the cosine itself, though a singular
    vector's sign is arbitrary; the last group of a matrix may be shorter. Their weights are 8-bit codes, rounded at
    random after every step: `trainable.update: stochastic` does that for bfloat16 weights, and no storage of 8 bits
    trains here. P waits for a gradient other than zero, as in `galore`.
    Advice: the authors' are the defaults here.
    """

    aliases = {
        "q_galore_adamw8bit": "adapter: null\ntrainable: full\noptimizer: q_galore",
    }

    class Config(GaLore.Config):
        bits: Literal[32, 8] = Field(8, description="8: moments as 8-bit codes, 32: as `state_dtype` says")
        side: Literal["std", "reverse_std", "left", "right"] = Field(
            "std", description="std compresses the smaller dimension, reverse_std the larger"
        )
        group: int = Field(256, gt=1, le=65_536, description="numbers of a projection on one grid")
        cosine: float = Field(
            0.4,
            gt=0,
            le=1,
            description="from which mean cosine of adjacent projections on they count as alike",
        )
        queue: int = Field(5, gt=0, le=1_000, description="cosines whose mean is taken")
        slower: float = Field(2.0, ge=1, le=1_000, description="by which the interval then grows")

    config: Config

    def interval(self, state: State) -> int:
        return int(state.get("every", self.config.update_every))

    def basis(self, state: State, grad: Tensor, name: str) -> Basis | None:
        if state["due"] and (grad.is_meta or bool(grad.any())):
            for side, vectors in self.new_basis(grad, name, state["refreshes"]).items():
                self._pace(state, (vectors[0] if side == "right" else vectors[:, 0]).clone())
                self._encode(state, side, vectors)
            state.update(refreshes=state["refreshes"] + 1, due=False)
        rank = min(self.config.rank, *grad.shape)
        shapes = {"left": (grad.shape[0], rank), "right": (rank, grad.shape[1])}
        held = [side for side in SIDES if f"{side}_codes" in state]
        return {side: self._decoded(state, side, shapes[side]) for side in held} or None

    def _pace(self, state: State, leading: Tensor) -> None:
        """Let the next choice wait longer where the last ones were alike."""
        before = state.get("leading")
        state["leading"] = leading
        if before is None or leading.is_meta:
            return
        cosine = F.cosine_similarity(before.float(), leading.float(), dim=0).abs().item()
        last = state["cosines"] = [*state.get("cosines", []), cosine][-self.config.queue :]
        if len(last) == self.config.queue and sum(last) / len(last) >= self.config.cosine:
            state["every"] = int(self.interval(state) * self.config.slower)

    def _encode(self, state: State, side: str, vectors: Tensor) -> None:
        flat = vectors.reshape(-1)
        last = flat[-1:].expand(-len(flat) % self.config.group)  # no new least or largest number
        groups = torch.cat([flat, last]).view(-1, self.config.group)
        grid = Grid.over(groups, BITS)
        codes = grid.codes(groups).to(torch.uint8).view(-1)[: len(flat)]
        state[f"{side}_codes"] = pack_nibbles(codes)
        state[f"{side}_step"], state[f"{side}_zero"] = grid.step.view(-1), grid.zero.to(torch.uint8).view(-1)

    def _decoded(self, state: State, side: str, shape: tuple[int, int]) -> Tensor:
        count, group = shape[0] * shape[1], self.config.group
        step, zero = (state[f"{side}_{name}"].repeat_interleave(group)[:count] for name in ("step", "zero"))
        codes = unpack_nibbles(state[f"{side}_codes"], count)
        decoded: Tensor = (codes.to(step.dtype) - zero.to(step.dtype)) * step
        return decoded.view(shape)
