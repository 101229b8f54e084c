"""OSF: what the weight does along its leading singular directions stays, everything orthogonal to them trains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lrft.core.adapter import Additive, Branch, Factors, Formed, LowRank
from lrft.core.params import Site
from lrft.core.peft import PeftForm, lora_keys
from lrft.core.renewing import Renewing
from lrft.core.settling import Settling
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field
from lrft.registry.json import Json


def osf_form_keys(config: OSF.Config, with_start: bool) -> dict[str, Json]:
    """Those of the first site stand for all."""
    return {}


def osf_form_here(adapter: OSF) -> dict[str, Json]:
    """The keys of a plain LoRA of twice the directions."""
    return lora_keys(2 * len(adapter.S), 2.0 * len(adapter.S))


def osf_form_tensors(adapter: OSF, start: OSF | None) -> dict[str, Tensor]:
    """The whole change as a product."""
    A, B = adapter.factors(start)
    return {"A": A, "B": B}


@ADAPTERS.register
class OSF(Renewing, Settling, LowRank):
    """Orthogonal subspace fine-tuning (sculpting subspaces): constrained full fine-tuning for continual learning.

        W  = U_h diag(S_h) V_h + U_0 diag(S_0) V_0         the k largest singular triples, and the r others
        W' = U_h diag(S_h) V_h + U diag(S) V
        dU <- dU - U_h (U_h^T dU),  dV <- dV - (dV V_h^T) V_h         before every step of the optimizer
        U  <- U - U_h (U_h^T U),    V  <- V - (V V_h^T) V_h           after it

    with d = min(in, out), k = floor(`keep` d) and r = d - k, or r = `directions` and k = d - r. The second projection
    is needed as an optimizer such as Adam rescales entry by entry and so leaves the subspace. The first is part of the
    gradient of U and V, so clipping sees what is left. W is that of the base, decomposed once, on attaching; the base
    keeps it, and W' = W + (U diag(S) - U_0 diag(S_0)) V + U_0 diag(S_0) (V - V_0) is what is computed, by products with
    x, the differences in float32. Where a next task begins (`data.mix.order: in_turn`, `restart: each_task`), the
    change moves into the base and W is decomposed anew, so that its own leading directions are then kept; so they are
    in a run on the merged model.

    Shapes: U (out, r) = U_0, S (r) = S_0, V (r, in) = V_0, so W' = W at step 0. Beside them U_0, S_0, V_0 and, where W
    is not square, U_h (out, k) or V_h (k, in): that of the longer side, as the projection of the other is U_0 U_0^T or
    V_0^T V_0.
    Trains: r (in + out + 1) numbers per site, of a square W as many as it has or more where r is half of d or more.
    They take 4 bytes a number more for the start, and the optimizer's state: this guards what was learnt and saves no
    memory. The pass keeps its input and 2 r numbers a token; factors are formed again in the backward pass. The change
    is of rank 2 r: where r is half of d a step takes, of a square W, twice as many multiplications for it as with W.
    Source: Nayak et al., "Sculpting Subspaces: Constrained Full Fine-Tuning in LLMs for Continual Learning", 2025,
    arXiv 2504.07097, and descriptions of the authors' code; function, merge and first projection checked against PEFT's
    OSF, which has no second one, so that drift adds up there.
    Departures: k is a share of d for all layers, where the paper has it between two shares by a layer's importance (the
    cosine of its input and output); the public scripts have fixed shares too. A quantized base is decomposed as it is
    stored. Any other restart moves the change into the base and keeps the directions of the first decomposition.
    Exported as a plain LoRA of rank 2 r: PEFT's own form decomposes whatever weight it is loaded on, which is not
    always this one.
    Advice: no weight decay, which pulls U, S and V and so W' itself towards 0. A whole SVD of every layer is made
    whenever a run is opened.
    """

    aliases = {
        "sculpting_subspaces orthogonal_subspace_fine_tuning": "adapter: osf",
        "effective_rank unfreeze_rank_ratio": "adapter: {method: osf, keep: 0.5}",
    }
    provides = {"adapters", "mergeable", "linear_delta", "undivided"}
    roles = {"U": "basis", "S": "magnitude", "V": "basis"}
    peft = PeftForm(osf_form_keys, osf_form_tensors, keys_here=osf_form_here)

    config: Config

    class Config(AdapterConfig):
        keep: float = Field(0.5, gt=0, lt=1, description="share of the singular directions that rest")
        directions: int | None = Field(
            None, gt=0, description="singular directions that train, instead of those that `keep` leaves"
        )

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        r, d = directions(config, site), min(site.in_features, site.out_features)
        if r >= d:
            raise ValueError(
                f"{r} directions of {d} would train and none rest; keep more, or train {d - 1} at most"
            )
        self.U = nn.Parameter(torch.zeros(site.out_features, r))
        self.S = nn.Parameter(torch.zeros(r))
        self.V = nn.Parameter(torch.zeros(r, site.in_features))
        for name in "USV":
            self.register_buffer(f"{name}_0", torch.zeros_like(self.get_parameter(name)))
        tall, wide = site.out_features > site.in_features, site.out_features < site.in_features
        self.register_buffer("U_h", torch.zeros(site.out_features, (d - r) * tall))
        self.register_buffer("V_h", torch.zeros((d - r) * wide, site.in_features))
        self.started = False

    @torch.no_grad()
    def start(self, weight: Tensor) -> None:
        if self.started:  # it stays what it was before a restart
            return
        U, S, Vh = torch.linalg.svd(weight.float(), full_matrices=False)
        k = len(S) - len(self.S)
        kept = {"U_0": U[:, k:], "S_0": S[k:], "V_0": Vh[k:]}
        kept |= {"U_h": U[:, : self.get_buffer("U_h").shape[1]], "V_h": Vh[: len(self.get_buffer("V_h"))]}
        for name, found in kept.items():
            self.get_buffer(name).copy_(found)
        self.started = True
        self.reset()

    def renew(self, weight: Tensor) -> None:
        self.started = False
        self.start(weight)

    @torch.no_grad()
    def reset(self) -> None:
        for name in "USV":
            self.get_parameter(name).copy_(self.get_buffer(f"{name}_0"))

    def branch(self) -> Branch:
        U_0, S_0, V_0 = (self.get_buffer(f"{name}_0") for name in "USV")

        def form(dtype: torch.dtype, U: Tensor, S: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
            up = U_0 * S_0
            return torch.cat([V, V - V_0]), torch.cat([U * S - up, up], dim=1)

        def pull(
            dtype: torch.dtype, down: Tensor | None, up: Tensor | None, U: Tensor, S: Tensor, V: Tensor
        ) -> tuple[Tensor, ...]:
            assert down is not None and up is not None
            first, second = down.chunk(2)
            scaled = up[:, : len(S)]
            return self.outside_U(scaled * S), (scaled * U).sum(0), self.outside_V(first + second)

        return Branch(formed=Formed((self.U, self.S, self.V), form, pull))

    def outside_U(self, matrix: Tensor) -> Tensor:
        """What of the columns of a matrix (out, r) is orthogonal to the kept left directions."""
        kept, rest = self.get_buffer("U_h"), self.get_buffer("U_0")
        if kept.shape[1]:
            return matrix - kept @ (kept.mT @ matrix)
        return rest @ (rest.mT @ matrix)  # the left directions are a whole basis

    def outside_V(self, matrix: Tensor) -> Tensor:
        """What of the rows of a matrix (r, in) is orthogonal to the kept right directions."""
        kept, rest = self.get_buffer("V_h"), self.get_buffer("V_0")
        if len(kept):
            return matrix - (matrix @ kept.mT) @ kept
        return (matrix @ rest.mT) @ rest

    @torch.no_grad()
    def factors(self, start: Additive | None = None) -> Factors:
        assert start is None, "no init takes a start off the base for this method"
        A, B = self.branch().pair()
        return A.float(), B.float()

    @torch.no_grad()
    def settle(self, rates: Mapping[Tensor, float]) -> None:
        if rates.get(self.U):
            self.U.copy_(self.outside_U(self.U))
        if rates.get(self.V):
            self.V.copy_(self.outside_V(self.V))

    @staticmethod
    def count(config: Any, site: Site) -> int:
        return directions(config, site) * (site.in_features + site.out_features + 1)


def directions(config: Any, site: Site) -> int:
    """How many singular directions train."""
    d = min(site.in_features, site.out_features)
    return int(config.directions or d - math.floor(config.keep * d))
