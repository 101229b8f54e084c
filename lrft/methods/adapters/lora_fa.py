"""LoRA-FA: LoRA whose A is frozen where it started."""

from __future__ import annotations

from lrft.core.params import Site
from lrft.methods.adapters.lora import LoRA
from lrft.registry.axes import ADAPTERS


@ADAPTERS.register
class LoRAFA(LoRA):
    """Low-rank adaptation that trains B alone, with A frozen at its random start.

        y  = x W^T + b + s (drop(x) A^T) B^T
        W' = W + s B A,  A constant

    with r = `rank`, s = `alpha` / r (`alpha` / sqrt(r) with `rslora: true`) and drop, dropout of probability `dropout`,
    as in `lora`, `rank_pattern` and `alpha_pattern` too. The rows of the change never leave the row space of A.

    Shapes: A (r, in) ~ U(-1/sqrt(in), 1/sqrt(in)), frozen; B (out, r) = 0, so W' = W at step 0.
    Trains: r out numbers per site; A is saved with them. Without dropout the input is not kept for the backward pass,
    only x A^T, r numbers a token.
    Source: Zhang et al., "LoRA-FA", 2023, arXiv 2308.03303; frozen A of FFA-LoRA, arXiv 2403.12313.
    Departures: A is Kaiming-uniform, as LoRA's and PEFT's (the paper says Gaussian; see `init: gaussian`). The
    corrected gradient of the paper's second version is `optimizer: lora_fa`.
    """

    provides = {"adapters", "mergeable", "low_rank", "linear_delta", "frozen_A"}
    peft = LoRA.peft

    config: Config

    class Config(LoRA.Config):
        pass

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.A.requires_grad_(False)

    @staticmethod
    def count(config: LoRA.Config, site: Site) -> int:
        return int(config.rank * site.out_features)
