"""LoHa: two low-rank matrices multiplied entry by entry."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor, nn

from lrft.core.adapter import Additive, Branch, Factors, Formed, PeftForm
from lrft.core.frozen import FrozenLinear
from lrft.core.params import Site
from lrft.methods.adapters._row_dropout import draw_rows
from lrft.ops.formula import formula_linear
from lrft.ops.low_rank import branch_linear
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import ADDED, AdapterConfig, Field, Literal
from lrft.registry.json import Json

SHARE = 4  # up to 1 / SHARE of the shorter side, r^2 components are cheaper than the dense change


def loha_form_keys(config: LoHa.Config, with_start: bool) -> dict[str, Json]:
    """PEFT's keys of the method."""
    return {
        "peft_type": "LOHA",
        "r": config.rank,
        "alpha": config.alpha,
        "rank_dropout": config.rank_dropout,
        "module_dropout": config.module_dropout,
    }


@ADAPTERS.register
class LoHa(Additive):
    """Low-rank Hadamard product: the change is the product of two low-rank matrices, entry by entry.

        W' = W + s (B1 A1) * (B2 A2)      * entry by entry
        y  = x W'^T + b
        (B1 A1) * (B2 A2) = B A,  row (k, l) of A = A1[k] * A2[l],  column (k, l) of B = B1[:, k] * B2[:, l]

    with r = `rank`, s = `alpha` / r; the change has rank up to r^2. Where r^2 is at most a quarter of the shorter side
    of W it is computed by the r^2 components of the second line, elsewhere as a dense matrix; both are formed in the
    forward pass and again in the backward pass, and are not kept. In training a row of the change, an output, is
    dropped with probability `rank_dropout`, and what is left is divided by the share that is; all of the change at a
    site is dropped with probability `module_dropout`, and nothing divided.

    Shapes: A1, A2 (r, in), B1, B2 (out, r). With `draw: kaiming` A1, A2 ~ U(-1/sqrt(in), 1/sqrt(in)), B1, B2 ~
    U(-1/sqrt(r), 1/sqrt(r)) but A2 = 0, as in PEFT; with `draw: normal` A1, A2 ~ N(0, 1), B1 ~ N(0, 0.1^2), B2 = 0, as
    in LyCORIS. So W' = W at step 0.
    Trains: 2 r (in + out) numbers per site. Beside x only r^2 numbers a token are kept, or none with the dense change.
    Source: Hyeon-Woo et al., "FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning", ICLR
    2022, arXiv 2108.06098; Yeh et al., "Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model
    Evaluation", ICLR 2024, arXiv 2309.14859, and the authors' code; checked against PEFT's layer.
    Departures: carried from convolutions to linear layers. The dropped rows are scaled as in PEFT, which LyCORIS leaves
    to an option. Where all of a change was dropped its gradient is 0, where in PEFT there is none. No DoRA on top, no
    trained scalar.
    """

    aliases = {"low_rank_hadamard fedpara": "adapter: loha"}
    provides = {"adapters", "mergeable", "linear_delta", "undivided"}
    roles = {"A1": "lora_A", "B1": "lora_B", "A2": "lora_A", "B2": "lora_B"}
    peft = PeftForm(
        loha_form_keys,
        names={"A1": "hada_w1_b", "B1": "hada_w1_a", "A2": "hada_w2_b", "B2": "hada_w2_a"},
        transposed=False,
        lacks=("bias",),
    )

    config: Config

    class Config(AdapterConfig):
        rank: int = Field(8, gt=0, le=65_536)
        alpha: float = Field(8.0, gt=0, le=1_000_000)
        draw: Literal["kaiming", "normal"] = Field(
            "kaiming", description="distribution of the factors at step 0: PEFT's, or that of LyCORIS"
        )
        rank_dropout: float = Field(
            0.0, ge=0, lt=1, description="probability that an output of the change is dropped"
        )
        module_dropout: Annotated[float, ADDED] = Field(
            0.0, ge=0, lt=1, description="probability that the whole change of a site is dropped"
        )

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.scaling = config.alpha / config.rank
        self.skipped = config.module_dropout > 0
        for k in "12":
            self.register_parameter(f"A{k}", nn.Parameter(torch.empty(config.rank, site.in_features)))
            self.register_parameter(f"B{k}", nn.Parameter(torch.empty(site.out_features, config.rank)))
        self.thin = SHARE * config.rank**2 <= min(site.in_features, site.out_features)
        self.reset()

    def reset(self) -> None:
        A1, B1, A2, B2 = self._factors()
        if self.config.draw == "kaiming":
            for matrix in (A1, B1, B2):
                nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))
            nn.init.zeros_(A2)
        else:
            nn.init.normal_(A1)
            nn.init.normal_(A2)
            nn.init.normal_(B1, std=0.1)
            nn.init.zeros_(B2)

    def change(self) -> Tensor:
        return self._dense(None)

    def forward(self, x: Tensor, base: FrozenLinear) -> Tensor:
        rows = draw_rows(self, self.config.rank_dropout, x.device, whole=self.config.module_dropout)
        if self.thin:
            return branch_linear(x, base, self._branch(rows), dtype=self.compute_dtype)
        return formula_linear(x, base, lambda weight: self._dense(rows), self.parameters())

    def update(self, x: Tensor) -> Tensor:
        if self.thin:
            return branch_linear(x, None, self._branch(None), dtype=self.compute_dtype)
        return super().update(x)

    @torch.no_grad()
    def factors(self, start: Additive | None = None) -> Factors | None:
        if self.config.rank**2 >= min(self.site.in_features, self.site.out_features):
            return None
        A, B = self._branch(None).pair()
        if start is None:
            return A, self.scaling * B
        assert isinstance(start, LoHa)
        A0, B0 = start._branch(None).pair()
        return torch.cat([A, A0]), self.scaling * torch.cat([B, -B0], dim=1)

    def _factors(self) -> tuple[nn.Parameter, ...]:
        return tuple(self.get_parameter(name) for name in ("A1", "B1", "A2", "B2"))

    def _dense(self, rows: Tensor | None) -> Tensor:
        """The change, its rows times `rows` (out,), as (out, in)."""
        A1, B1, A2, B2 = self._factors()
        up = self.scaling * B1 if rows is None else self.scaling * rows[:, None] * B1
        return (up @ A1) * (B2 @ A2)

    def _branch(self, rows: Tensor | None) -> Branch:
        """The change by its r^2 components."""

        def form(dtype: torch.dtype, A1: Tensor, B1: Tensor, A2: Tensor, B2: Tensor) -> tuple[Tensor, Tensor]:
            B = (B1[:, :, None] * B2[:, None, :]).flatten(1)
            return (A1[:, None] * A2).flatten(0, 1), B if rows is None else rows[:, None] * B

        def pull(
            dtype: torch.dtype,
            dA: Tensor | None,
            dB: Tensor | None,
            A1: Tensor,
            B1: Tensor,
            A2: Tensor,
            B2: Tensor,
        ) -> tuple[Tensor, ...]:
            assert dA is not None and dB is not None
            dA = dA.unflatten(0, (len(A1), len(A2)))
            dB = (dB if rows is None else rows[:, None] * dB).unflatten(1, (len(A1), len(A2)))
            dA1, dA2 = (dA * A2).sum(1), (dA * A1[:, None]).sum(0)
            return dA1, (dB * B2[:, None, :]).sum(2), dA2, (dB * B1[:, :, None]).sum(1)

        return Branch(scale=self.scaling, formed=Formed(self._factors(), form, pull))

    @staticmethod
    def count(config: Config, site: Site) -> int:
        return 2 * config.rank * (site.in_features + site.out_features)
