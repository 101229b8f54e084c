"""OFT: the inputs of a layer are rotated, block by block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from lrft.core.adapter import Adapter, PeftForm, Shared
from lrft.core.params import Site
from lrft.core.settling import Settling
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import ADDED, AdapterConfig, Field


def oft_form_keys(config: Any, with_start: bool) -> dict[str, Any]:
    """PEFT's keys of the method."""
    keys = {"peft_type": "OFT", "r": 0, "oft_block_size": config.block_size, "use_cayley_neumann": False}
    shared = {"block_share": True} if config.block_share else {}
    bound = {} if config.constraint is None else {"coft": True, "eps": config.constraint}
    return keys | shared | bound


@ADAPTERS.register
class OFT(Adapter):
    """Orthogonal fine-tuning: the weight times a block-diagonal rotation of its inputs.

        W' = W diag(R_1, ..., R_k)
        R  = (I + Q) (I - Q)^-1       Cayley's map, block by block
        y  = x W'^T + b

    with b = `block_size`, which divides in, k = in / b blocks; Q is skew, its strict upper triangle trains. Rows of W
    keep their norms and their angles. R - I is formed as 2 Q (I - Q)^-1, exact for small Q; no singular value of I - Q
    is below 1, so the inverse is safe in float32. With `block_share: true` R_1 = ... = R_k, one rotation of a site.
    With `constraint: e` (COFT) a Q whose norm |Q|_F is above e / sqrt(k) is shortened to it after every update, 1 in
    the place of k where the blocks are one.

    Shapes: W (out, in), Q and R (k, b, b), the triangles q (k, b (b - 1) / 2) = 0, so R = I and W' = W at step 0; with
    `block_share` one of each.
    Trains: in (b - 1) / 2 numbers per site, b (b - 1) / 2 with `block_share`.
    Source: Qiu et al., "Controlling Text-to-Image Diffusion by Orthogonal Finetuning", NeurIPS 2023, arXiv 2306.07280;
    R on the side of the inputs: Liu et al., "BOFT", ICLR 2024, arXiv 2311.06243, and PEFT's layer with
    `use_cayley_neumann` off, checked on the same numbers; constraint and shared blocks as there, over several steps.
    Departures: the constraint is met after an update, where PEFT meets it when the next pass begins; the inverse is
    exact, where PEFT by default sums five terms of its series.
    """

    aliases = {
        "qoft": "quantization: nf4\nadapter: oft",
        "coft": "adapter: {method: oft, constraint: 6.0e-5}",
    }
    provides = {"adapters", "mergeable"}
    roles = {"q": "core"}
    peft = PeftForm(oft_form_keys, names={"q": "oft_R.weight"}, transposed=False)

    config: Config

    class Config(AdapterConfig):
        block_size: int = Field(32, gt=1, description="side of the rotations; divides the inputs")
        block_share: Annotated[bool, ADDED] = Field(
            False, description="one rotation for all blocks of a site"
        )
        constraint: Annotated[float | None, ADDED] = Field(
            None, gt=0, description="most that Q may be, in all blocks together (COFT); PEFT's eps is 6e-5"
        )

    @classmethod
    def at(cls, config: Config, site: Site, shared: Shared | None = None) -> Adapter:
        return (cls if config.constraint is None else ConstrainedOFT)(config, site)

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        size, width = config.block_size, site.in_features
        if width % size:
            near = [d for d in range(2, width + 1) if width % d == 0]
            best = min(near, key=lambda d: abs(d - size))
            raise ValueError(f"block_size {size} does not divide the {width} inputs; use {best}")
        self.q = nn.Parameter(torch.zeros(1 if config.block_share else width // size, size * (size - 1) // 2))

    def reset(self) -> None:
        nn.init.zeros_(self.q)

    def delta_weight(self, weight: Tensor) -> Tensor:
        blocks = weight.float().unflatten(1, (-1, self.config.block_size)).transpose(0, 1)  # (k, out, b)
        turned: Tensor = (blocks @ self.turns()).transpose(0, 1).flatten(1)
        return turned.to(weight.dtype)

    def turns(self) -> Tensor:
        """R - I of every block, (k, b, b) float32."""
        size = self.config.block_size
        rows, columns = torch.triu_indices(size, size, 1, device=self.q.device)
        upper = self.q.new_zeros(len(self.q), size, size)
        upper[:, rows, columns] = self.q
        Q = upper - upper.mT
        turns: Tensor = torch.linalg.solve(
            torch.eye(size, device=Q.device) - Q, 2 * Q
        )  # the two factors commute
        return turns

    @staticmethod
    def count(config: Any, site: Site) -> int:
        width = config.block_size if config.block_share else site.in_features
        return int(width * (config.block_size - 1) // 2)


class ConstrainedOFT(Settling, OFT):
    """One whose rotations are bounded: `oft` with a `constraint`."""

    peft = OFT.peft

    def settle(self, rates: Mapping[Tensor, float]) -> None:
        if self.q in rates:
            norms = self.q.norm(dim=1, keepdim=True) * 2**0.5  # the triangle is in Q twice
            most = self.config.constraint / len(self.q) ** 0.5
            self.q.mul_((most / norms).clamp_max(1))
