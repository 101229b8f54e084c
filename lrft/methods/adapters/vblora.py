"""VB-LoRA: the factors of all sites are put together from one bank of short vectors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lrft.core.adapter import Branch, Formed, LowRank, PeftForm, Shared
from lrft.core.params import Site
from lrft.core.shared import kept_apart
from lrft.methods.adapters._divisors import check_divides
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field, model_validator
from lrft.registry.json import Json

NEVER = -1e4  # a logit of what is not among the k largest: finite, as files have to be, and e to it is 0


def vblora_form_keys(config: VBLoRA.Config, with_start: bool) -> dict[str, Json]:
    """PEFT's keys of the method; its compact files say all weights but the last, 1 less the others."""
    return {
        "peft_type": "VBLORA",
        "r": config.rank,
        "num_vectors": config.vectors,
        "vector_length": config.vector_length,
        "topk": config.top_k,
        "vblora_dropout": config.dropout,
        "save_only_topk_weights": config.top_k <= 2,
    }


def vblora_form_tensors(adapter: VBLoRA, start: VBLoRA | None) -> dict[str, Tensor]:
    """Which vectors and their weights, but the last; of three and more, rounded, that could come out below 0.

    Then the logits are kept whole, those of other vectors so low that rounding does not choose them.
    """
    found: dict[str, Tensor] = {}
    for name in ("logits_A", "logits_B"):
        logits = adapter.get_parameter(name).detach()
        top, places = logits.topk(adapter.config.top_k)
        if adapter.config.top_k > 2:
            found[name] = torch.full_like(logits, NEVER).scatter(-1, places, top)
        else:
            found[f"{name}_places"] = places.to(_smallest(adapter.config.vectors))
            found[f"{name}_weights"] = torch.softmax(top, dim=-1)[..., :-1].contiguous()
    return found


class Bank(Shared):
    """The vectors (h, b) that all sites choose from; they train."""

    roles = {"vectors": "core"}

    def __init__(self, config: VBLoRA.Config) -> None:
        super().__init__()
        shape = (config.vectors, config.vector_length)
        self.vectors = nn.Parameter(torch.empty(shape).uniform_(-config.bound, config.bound))

    def peft_tensors(self) -> dict[str, Tensor]:
        return {"vblora_vector_bank": self.vectors.detach()}


@ADAPTERS.register
class VBLoRA(LowRank):
    """Vector-bank LoRA: every piece of every factor is a mixture of the few vectors of one bank that it chose.

        piece = sum over the k largest logits l_i of softmax(these k)_i v_i
        y  = x W^T + bias + (drop(x) A^T) B^T
        W' = W + B A

    with v_i the h = `vectors` vectors of the bank, b = `vector_length` numbers long, b dividing in and out; k =
    `top_k`, r = `rank`, no scale; drop is dropout of probability `dropout`. Each row of A is in / b pieces side by
    side, each column of B out / b pieces, and every piece has h logits of its own.

    Shapes: A (r, in), B (out, r), bank (h, b) ~ U(-`bound`, `bound`), logits of A (r, in / b, h) and of B (out / b, r,
    h) ~ N(0, `std`^2). Pieces are never 0, so W' is not W at step 0, but near; and there is no way back to no change,
    so restarts are refused.
    Trains: h r (in + out) / b numbers per site, and h b once for all sites. Only the k chosen logits of a piece have a
    gradient. The factors are formed in the forward and again in the backward pass, and not kept.
    Source: Li, Han and Ji, "VB-LoRA: Extreme Parameter Efficient Fine-Tuning with Vector Banks", NeurIPS 2024, arXiv
    2405.15179; formula, starts and files are those of PEFT's layer, checked on the same numbers; the paper was not
    read.
    Departures: none. The finished adapter holds the bank and, with k up to 2, which vectors each piece chose with all
    weights but the last: PEFT's `save_only_topk_weights`, some 1 number and a half a piece. Checkpoints hold all
    logits.
    Advice: a larger model wants a larger bank; `top_k: 2` is usual.
    """

    aliases = {"vector_bank vector_bank_lora": "adapter: vblora"}
    provides = {"adapters", "mergeable", "linear_delta", "undivided", "moved_start"}
    requires = {"one_stage"}
    roles = {"logits_A": "router", "logits_B": "router"}
    peft = PeftForm(
        vblora_form_keys,
        vblora_form_tensors,
        names={
            f"logits_{factor}{part}": f"vblora_logits_{factor}{theirs}"
            for factor in "AB"
            for part, theirs in (("", ""), ("_places", "_topk_indices"), ("_weights", "_topk_weights"))
        },
        unrounded=("logits_A_weights", "logits_B_weights"),
    )

    config: Config

    class Config(AdapterConfig):
        rank: int = Field(4, gt=0, le=65_536)
        vectors: int = Field(256, gt=0, description="vectors of the bank")
        vector_length: int = Field(256, gt=0, description="of a vector; divides inputs and outputs")
        top_k: int = Field(2, gt=0, description="vectors that a piece is a mixture of")
        dropout: float = Field(0.0, ge=0, lt=1)
        bound: float = Field(0.02, gt=0, description="vectors start within +- this")
        std: float = Field(0.1, gt=0, description="standard deviation that logits start with")

        @model_validator(mode="after")
        def _check_top_k(self) -> VBLoRA.Config:
            if self.top_k > self.vectors:
                raise ValueError(f"top_k is {self.top_k}, but there are {self.vectors} vectors")
            return self

    @classmethod
    def shared(cls, config: Config, sites: Mapping[str, Site], hidden_size: int) -> Shared | None:
        return Bank(config)

    @classmethod
    def at(cls, config: Config, site: Site, shared: Shared | None = None) -> VBLoRA:
        return cls(config, site, shared)

    def __init__(self, config: Config, site: Site, shared: Shared | None = None) -> None:
        super().__init__(config, site)
        b, out, width = config.vector_length, site.out_features, site.in_features
        check_divides("vector_length", b, site)
        self.bank = kept_apart(shared, Bank, lambda: Bank(config))
        h, r = config.vectors, config.rank
        self.logits_A = nn.Parameter(torch.empty(r, width // b, h).normal_(std=config.std))
        self.logits_B = nn.Parameter(torch.empty(out // b, r, h).normal_(std=config.std))

    def branch(self) -> Branch:
        k = self.config.top_k

        def form(dtype: torch.dtype, of_A: Tensor, of_B: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
            return mix(of_A, bank, k).flatten(1), mix(of_B, bank, k).mT.flatten(0, 1)

        def pull(
            dtype: torch.dtype, dA: Tensor | None, dB: Tensor | None, *trained: Tensor
        ) -> tuple[Tensor, ...]:
            assert dA is not None and dB is not None
            with torch.enable_grad():
                leaves = [tensor.detach().requires_grad_(True) for tensor in trained]
                A, B = form(torch.float32, *leaves)
            return torch.autograd.grad((A, B), leaves, (dA, dB))

        trained = (self.logits_A, self.logits_B, self.bank[0].vectors)
        return Branch(dropout=self.config.dropout, formed=Formed(trained, form, pull))

    @staticmethod
    def count(config: Config, site: Site) -> int:
        pieces = (site.in_features + site.out_features) // config.vector_length
        return int(config.vectors * config.rank * pieces)


def mix(logits: Tensor, bank: Tensor, k: int) -> Tensor:
    """Softmax of the k largest of each (..., h) logits, times the vectors they stand for: (..., b)."""
    top, places = logits.topk(k)
    mixed: Tensor = (torch.softmax(top, dim=-1)[..., None] * bank[places]).sum(-2)
    return mixed


def _smallest(vectors: int) -> torch.dtype:
    """The type that PEFT keeps the places of so many vectors in."""
    if vectors < 2**8:
        return torch.uint8
    return torch.int16 if vectors < 2**15 else torch.int32
