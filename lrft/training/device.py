"""Devices and processes, owned by accelerate."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from lrft.registry.errors import RecipeError

if TYPE_CHECKING:
    from accelerate import Accelerator

# What `accelerate launch` asks of a script, which its Accelerator leaves out in silence where it cannot do it.
ASKED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DEEPSPEED",
    "ACCELERATE_USE_MEGATRON_LM": "MEGATRON_LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config",
}


def make_accelerator(device: str, dtype: str) -> Accelerator:
    """The accelerator of this process.

    One process per device; a launcher (`torchrun`, `accelerate launch`) decides how many.

    Raises:
        RecipeError: the device is not there, fewer processes joined than the launcher announced, or it asks for more
            than plain processes.
    """
    import torch
    from accelerate import Accelerator

    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 10):
        raise RecipeError(
            f"torch {torch.__version__} reads files unsafely; lrft needs 2.10 or newer", "train"
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise RecipeError("no CUDA device is visible; use `auto` or `cpu`", "train.device")
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    if dtype == "float16" and on_cpu:
        raise RecipeError("float16 needs a GPU; use bfloat16 or float32 on the CPU", "model.dtype")
    for name, engine in ASKED.items():
        if os.environ.get(name, "false").lower() not in ("", "0", "false"):
            raise _not_here(engine)
    accelerator = Accelerator(cpu=on_cpu, mixed_precision="no")
    announced = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != announced:
        raise RecipeError(
            f"the launcher announced {announced} processes but {accelerator.num_processes} joined; "
            "on CPUs start them with `torchrun --nproc-per-node N`",
            "train.device",
        )
    if accelerator.distributed_type.name in ASKED.values():
        raise _not_here(accelerator.distributed_type.name)
    return accelerator


def _not_here(engine: str) -> RecipeError:
    return RecipeError(
        f"{engine} is not supported; start plain processes, one per device, with train.shard_base: true where the base "
        "does not fit one",
        "train.device",
    )
