"""bitsandbytes, imported when a format first needs it."""

from __future__ import annotations

import importlib
import logging
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Literal, Protocol

import torch
from torch import Tensor

from lrft.registry.errors import MissingExtra


class SecondScales(Protocol):
    """The scales of quantized scales."""

    absmax: Tensor


class QuantState(Protocol):
    """What bitsandbytes keeps beside the codes of a weight."""

    absmax: Tensor
    offset: Tensor | None
    state2: SecondScales
    nested: bool
    quant_type: str
    blocksize: Literal[32, 64, 128, 256, 512, 1024]
    dtype: torch.dtype
    shape: torch.Size
    original_dtype: torch.dtype
    original_nested: bool


class Linear4bit(Protocol):
    """A layer of bitsandbytes."""

    weight: Tensor
    bias: Tensor | None


@dataclass
class Held:
    """What is looked at of such a layer, of one that is in a file."""

    weight: Tensor
    bias: Tensor | None
    quant_state: QuantState


@cache
def bitsandbytes_functional() -> ModuleType:
    """The module `bitsandbytes.functional`.

    Raises:
        MissingExtra: bitsandbytes is not installed; the message holds the install line.
    """
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    logger.addFilter(_is_news)
    try:
        return importlib.import_module("bitsandbytes.functional")
    except ImportError as error:
        raise MissingExtra(
            f"quantization.method: this storage needs bitsandbytes, which cannot be imported ({error}); "
            "install it with `pip install bitsandbytes`, or use `quantization: none`"
        ) from error
    finally:
        logger.removeFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """False for the offer of a faster 4-bit inference kernel: lrft decodes and never calls that kernel."""
    return not record.getMessage().startswith("Failed to load CPU gemm_4bit_forward")
