"""LoRA+: a higher learning rate for the factor that starts at zero."""

from __future__ import annotations

from typing import ClassVar

import torch

from lrft.core.params import ParamInfo
from lrft.methods.optim.adamw import AdamW
from lrft.registry.axes import OPTIMIZERS
from lrft.registry.config import Field


@OPTIMIZERS.register
class LoRAPlus(AdamW):
    """AdamW with a higher learning rate for the factor of a LoRA that starts at zero.

        B, and all that has one dimension (magnitudes, norms, biases):   rate ratio * lr
        A and other matrices:                                            rate lr
        factors of an adapter on an embedding:                           rate lr_embedding

    with the equations of `adamw` and its settings `lr`, `weight_decay`, `beta1`, `beta2`, `eps` for every parameter at
    its rate; ratio = `ratio`, which does not scale `lr_embedding`. Weight decay spares biases, and norm weights of the
    base model. With `ratio: 1` A and B move as under AdamW.

    Shapes: m and v as the parameter, both 0 before the first step.
    State: 2 numbers per parameter, 8 bytes, as AdamW.
    Source: Hayou, Ghosh and Yu, "LoRA+", ICML 2024, arXiv 2402.12354; groups as in their code and PEFT.
    Departures: `ratio`, which their code leaves to the user, defaults to 16 as the paper advises.
    Advice: choose a base rate of about half of what suits plain LoRA. Of the adapters here, `prompt_tuning` and
    `prefix_tuning` are adapters on embeddings; at their usual rates write `lr_embedding` too, since its default is for
    LoRA on an embedding.
    """

    aliases = {
        "lora+": "optimizer: lora_plus",
        "loraplus_lr_ratio": "optimizer: {method: lora_plus, ratio: 16}",
        "loraplus_lr_embedding": "optimizer: {method: lora_plus, lr_embedding: 1e-6}",
    }

    lighter: ClassVar[str | None] = None

    class Config(AdamW.Config):
        ratio: float = Field(16.0, gt=0, description="learning rate of B over that of A")
        lr_embedding: float = Field(1e-6, gt=0, description="learning rate of adapters on embeddings")

    @classmethod
    def build(cls, params: list[ParamInfo], config: Config) -> torch.optim.Optimizer:  # type: ignore[override]
        rates = {"slow": config.lr, "embedding": config.lr_embedding, "fast": config.lr * config.ratio}
        groups = []
        for name, rate in rates.items():
            for decays in (True, False):
                members = [i.param for i in params if _speed(i) == name and _decays(i) == decays]
                if members:
                    decay = config.weight_decay if decays else 0.0
                    groups.append({"params": members, "lr": rate, "weight_decay": decay})
        return cls(groups, **cls.settings(params, config))


def _speed(info: ParamInfo) -> str:
    """Which of the three learning rates a parameter gets."""
    if info.role == "embedding" and info.site:
        return "embedding"
    return "fast" if info.role == "lora_B" or info.param.ndim == 1 else "slow"


def _decays(info: ParamInfo) -> bool:
    """False for biases, and for norm weights: what else a base model has in one dimension."""
    return "bias" not in info.name and not (info.param.ndim == 1 and not info.site)
