"""What rounding a merged weight left, as a plain adapter on the rounded model."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from lrft.export.pairs import Pair
from lrft.export.peft_format import Keys, target_modules
from lrft.export.plain_form import files_of, pair_form
from lrft.model.causal_lm import CausalLM
from lrft.registry.errors import UsageError

REMAINDER = "remainder"  # folder, within that of the rounded model


def remainder_files(dense: CausalLM, pairs: Mapping[str, Pair], dtype: torch.dtype) -> dict[str, bytes]:
    """File name -> content of the adapter with these pairs, by layer. Its base is the folder that it lies in.

    Raises:
        UsageError: PEFT would take layers for the experts of a mixture.
    """
    fused = any(p.ndim == 3 and ".experts." in name for name, p in dense.hf.named_parameters())
    if fused:
        raise UsageError(
            f"--keep-rank: PEFT would take layers of {type(dense.hf).__name__} for its experts; leave it out"
        )
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
