"""What rounding a merged weight left, as a plain adapter on the rounded model."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch

from lrft.export.expert_form import EXPERT_NAMES
from lrft.export.pairs import Pair
from lrft.export.peft_config import Keys, target_modules
from lrft.export.plain_form import files_of, pair_form
from lrft.model.causal_lm import CausalLM
from lrft.registry.errors import UsageError

REMAINDER = "remainder"  # folder, within that of the rounded model


def check_remainder(dense: CausalLM, layers: Collection[str]) -> None:
    """Refuse layers that PEFT would look for in the experts of a mixture.

    Raises:
        UsageError: names them.
    """
    fused = any(p.ndim == 3 and ".experts." in name for name, p in dense.hf.named_parameters())
    taken = sorted({name.rpartition(".")[2] for name in layers} & EXPERT_NAMES) if fused else []
    if taken:
        raise UsageError(
            f"--keep-rank: PEFT takes {', '.join(taken)} of a mixture of experts for the experts themselves; "
            "leave it out"
        )


def remainder_files(dense: CausalLM, pairs: Mapping[str, Pair], dtype: torch.dtype) -> dict[str, bytes]:
    """File name -> content of the adapter with these pairs, by layer. Its base is the folder that it lies in."""
    tensors, said = pair_form(pairs, dtype)
    config: Keys = {
        "base_model_name_or_path": None,
        "task_type": "CAUSAL_LM",
        "bias": "none",
        "inference_mode": True,
        "target_modules": target_modules(dense, list(pairs)),
        "fan_in_fan_out": False,
        **said,
    }
    return files_of(tensors, config)
