"""LoKr: the Kronecker product of a small matrix and a low-rank one."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor, nn

from lrft.core.adapter import Additive, Factors, PeftForm
from lrft.core.frozen import FrozenLinear
from lrft.core.params import Site
from lrft.methods.adapters._row_dropout import draw_rows
from lrft.ops.kron import kron_linear
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import ADDED, AdapterConfig, Field, Literal, model_validator
from lrft.registry.json import Json


def lokr_form_keys(config: LoKr.Config, with_start: bool) -> dict[str, Json]:
    """PEFT's keys of the method."""
    return {
        "peft_type": "LOKR",
        "r": config.rank,
        "alpha": config.alpha,
        "rank_dropout": config.rank_dropout,
        "rank_dropout_scale": config.rank_dropout_scale,
        "module_dropout": config.module_dropout,
        "decompose_both": config.decompose_both,
        "decompose_factor": config.factor,
        "init_weights": "lycoris" if config.zero == "w2" else True,
    }


def lokr_form_tensors(adapter: LoKr, start: LoKr | None) -> dict[str, Tensor]:
    """PEFT scales two full matrices by alpha / rank too, so w1 makes up for it."""
    own: dict[str, Tensor] = adapter.state_dict()
    given = adapter.config.alpha / adapter.config.rank
    return own if adapter.scaling == given else own | {"w1": own["w1"] * (adapter.scaling / given)}


def split_as_in_peft(adapter: LoKr) -> bool:
    """Whether PEFT splits the sides as here: it puts a `factor` that divides first, also where it is the larger one."""
    factor, sides = adapter.config.factor, (adapter.site.out_features, adapter.site.in_features)
    return not any(factor > 0 and side % factor == 0 and factor > side // factor for side in sides)


@ADAPTERS.register
class LoKr(Additive):
    """Low-rank Kronecker product: the change is a small matrix, every entry of which scales a low-rank one.

        W' = W + s w1 kron w2,  w2 = w2a w2b
        y  = x W^T + b + s w1 X w2^T, flattened,  X = x as (c, d)

    with r = `rank`; out = a b and in = c d, a <= b and c <= d, as near to one another as divisors allow with `factor:
    -1`, else with a and c `factor`, or the largest divisor below it where it is none. w2 is one full matrix where r >=
    max(b, d) / 2; with `decompose_both` w1 = w1a w1b where r < max(a, c) / 2. s = `alpha` / r, but 1 where w1 and w2
    are both full, unless `scale_full`. w1 kron w2 is never formed in training. In training an output of the change is
    dropped with probability `rank_dropout`; `rank_dropout_scale` divides the others by the share that is left. All of
    the change at a site is dropped with probability `module_dropout`, and nothing divided.

    Shapes: w1 (a, c), or w1a (a, r), w1b (r, c); w2a (b, r), w2b (r, d), or w2 (b, d). All are uniform on +-1 / sqrt of
    their columns but w2b (or w2) = 0, or with `zero: w1` w1 (or w1a) = 0, as in PEFT; so W' = W at step 0.
    Trains: a c + r (b + d) numbers per site, b d in the place of the second term where w2 is full, r (a + c) in that of
    the first where w1 is not. Its rank is that of w1 times that of w2. Of what grows with the tokens only x is kept.
    Source: Yeh et al., "Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation", ICLR
    2024, arXiv 2309.14859, and the authors' code, whose start, scale and order of divisors are the defaults; checked
    against PEFT's layer.
    Departures: carried from convolutions to linear layers. Where all of a change was dropped its gradient is 0, and in
    PEFT there is none. No DoRA, no trained scalar.
    """

    aliases = {"low_rank_kronecker": "adapter: lokr"}
    provides = {"adapters", "mergeable", "linear_delta"}
    roles = {
        "w1": "core",
        "w1a": "core",
        "w1b": "core",
        "w2": "core",
        "w2a": "lora_B",
        "w2b": "lora_A",
    }
    peft = PeftForm(
        lokr_form_keys,
        lokr_form_tensors,
        names={
            "w1": "lokr_w1",
            "w1a": "lokr_w1_a",
            "w1b": "lokr_w1_b",
            "w2": "lokr_w2",
            "w2a": "lokr_w2_a",
            "w2b": "lokr_w2_b",
        },
        transposed=False,
        lacks=("bias",),
        holds=split_as_in_peft,
    )

    config: Config

    class Config(AdapterConfig):
        rank: int = Field(8, gt=0, le=65_536)
        alpha: float = Field(8.0, gt=0, le=1_000_000)
        factor: int = Field(
            -1, ge=-1, description="rows and columns of w1; -1: near the square roots of the sides"
        )
        decompose_both: bool = Field(False, description="w1 too is of low rank where it is large enough")
        scale_full: bool = Field(
            False, description="scale by alpha / rank also where w1 and w2 are both full, as PEFT does"
        )
        zero: Literal["w2", "w1"] = Field(
            "w2", description="the matrix that is 0 at step 0; PEFT's default is w1"
        )
        rank_dropout: float = Field(
            0.0, ge=0, lt=1, description="probability that an output of the change is dropped"
        )
        rank_dropout_scale: bool = Field(False, description="divide by the share of the outputs that is left")
        module_dropout: Annotated[float, ADDED] = Field(
            0.0, ge=0, lt=1, description="probability that the whole change of a site is dropped"
        )

        @model_validator(mode="after")
        def _check_factor(self) -> LoKr.Config:
            if self.factor == 0:
                raise ValueError("factor is 0; write -1, or the number of rows and columns of w1")
            return self

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        shapes = shapes_of(config, site)
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))
        full = {"w1", "w2"} <= shapes.keys() and not config.scale_full
        self.scaling = 1.0 if full else config.alpha / config.rank
        self.skipped = config.module_dropout > 0
        self.reset()

    def reset(self) -> None:
        first = "w1" if hasattr(self, "w1") else "w1a"
        second = "w2" if hasattr(self, "w2") else "w2b"
        for name, matrix in self.named_parameters():
            if name == (second if self.config.zero == "w2" else first):
                nn.init.zeros_(matrix)
            else:
                nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))

    def change(self) -> Tensor:
        down, up = self._second()
        return self.scaling * torch.kron(self._first(), up if down is None else up @ down)

    def forward(self, x: Tensor, base: FrozenLinear) -> Tensor:
        config = self.config
        rows = draw_rows(
            self, config.rank_dropout, x.device, config.rank_dropout_scale, config.module_dropout
        )
        if self.compute_dtype in (None, x.dtype):
            return kron_linear(x, base, self._first(), *self._second(), self.scaling, rows)
        return base(x) + self._term(x, rows)

    def update(self, x: Tensor) -> Tensor:
        return self._term(x, None)

    @torch.no_grad()
    def factors(self, start: Additive | None = None) -> Factors | None:
        """A (k, in) and B (out, k) with k = r min(a, c); None where w2 is full, or they would be larger than W."""
        down, up = self._second()
        first = self._first()
        if down is None or len(down) * min(first.shape) >= min(self.site.out_features, self.site.in_features):
            return None
        tall = first.shape[0] > first.shape[1]
        eye = torch.eye(min(first.shape), device=first.device)
        A = torch.kron(eye if tall else first, down)
        B = self.scaling * torch.kron(first if tall else eye, up)
        if start is None:
            return A, B
        before = start.factors()
        assert before is not None
        return torch.cat([A, before[0]]), torch.cat([B, -before[1]], dim=1)

    def _term(self, x: Tensor, rows: Tensor | None) -> Tensor:
        seen = x.to(self.compute_dtype or x.dtype)
        return kron_linear(seen, None, self._first(), *self._second(), self.scaling, rows).to(x.dtype)

    def _first(self) -> Tensor:
        """w1, (a, c)."""
        held = self.get_parameter
        return held("w1") if hasattr(self, "w1") else held("w1a") @ held("w1b")

    def _second(self) -> tuple[Tensor | None, Tensor]:
        """w2b (r, d) or None, and w2a (b, r) or w2 (b, d)."""
        held = self.get_parameter
        return (None, held("w2")) if hasattr(self, "w2") else (held("w2b"), held("w2a"))

    @staticmethod
    def count(config: Config, site: Site) -> int:
        return sum(rows * columns for rows, columns in shapes_of(config, site).values())


def shapes_of(config: LoKr.Config, site: Site) -> dict[str, tuple[int, int]]:
    """Name -> shape of what trains."""
    (a, b), (c, d) = (split(side, config.factor) for side in (site.out_features, site.in_features))
    r = config.rank
    small = {"w1a": (a, r), "w1b": (r, c)} if config.decompose_both and 2 * r < max(a, c) else {"w1": (a, c)}
    return small | ({"w2a": (b, r), "w2b": (r, d)} if 2 * r < max(b, d) else {"w2": (b, d)})


def split(side: int, factor: int) -> tuple[int, int]:
    """(m, n), m n = side and m <= n: m is `factor` or, where that does not divide, the largest below it that does."""
    if factor > 0 and side % factor == 0:
        m = factor
    else:
        top = min(math.isqrt(side), factor if factor > 0 else side)
        m = next(m for m in range(top, 0, -1) if side % m == 0)
    return min(m, side // m), max(m, side // m)
