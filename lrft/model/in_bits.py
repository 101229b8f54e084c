"""A checkpoint in few bits as transformers and bitsandbytes compute it, and not as lrft does."""

from __future__ import annotations

from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import torch

from lrft.core import stop
from lrft.model.causal_lm import CausalLM
from lrft.model.files import quiet
from lrft.model.hf import HF
from lrft.registry.errors import MissingExtra, NotMergeable, first_line

NEEDED = ("bitsandbytes", "accelerate")  # by transformers, for such checkpoints


def check_reader() -> None:
    """Refuse where transformers could not read such a checkpoint here.

    Raises:
        MissingExtra: with the install line.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise MissingExtra(
            f"--requantize: what is written is read back by transformers, which needs {' and '.join(missing)}; "
            f"install with `pip install {' '.join(missing)}`"
        )


@stop.at_once()
def load_in_bits(
    folder: Path, dtype: torch.dtype, layers: Collection[str], like: CausalLM, trusted: bool
) -> CausalLM:
    """The model in `folder`, on the device and with the head and the attention of `like`.

    Args:
        layers: paths of those that are stored in few bits.

    Raises:
        NotMergeable: transformers does not read it, or takes other layers for such ones.
    """
    from transformers import AutoModelForCausalLM

    quiet()
    try:
        hf = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=trusted,
            attn_implementation="eager",
            device_map={"": str(like.device)},
        )
    except Exception as error:  # whatever transformers makes of it
        raise NotMergeable(
            f"--requantize: transformers does not read {type(like.hf).__name__} in few bits ({first_line(error)}); "
            "merge without it"
        ) from None
    hf.requires_grad_(False).eval()
    found = {name for name, m in hf.named_modules() if type(m).__module__.startswith("bitsandbytes.")}
    if odd := sorted(found ^ set(layers)):
        raise NotMergeable(
            f"--requantize: transformers does not read {odd[0]} of {type(hf).__name__} as it was written; merge "
            "without it"
        )
    model = CausalLM(cast(HF, hf))
    model.softcap, model.scale = like.softcap, like.scale
    model.set_attention(like.attention)
    return model
