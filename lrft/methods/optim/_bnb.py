"""AdamW of bitsandbytes, with a state that survives a checkpoint."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import StateDict

from lrft.core.optimizer import Optimizer
from lrft.core.params import ParamInfo
from lrft.methods.optim._torch import Group
from lrft.registry.config import Field, OptimizerConfig
from lrft.registry.errors import MissingExtra

if TYPE_CHECKING:

    class _Base(Optimizer):
        is_paged: bool
        name2qmap: dict[str, Tensor]
        _FSDP_WRAPPED_QUANT_STATE_KEY: str

        def get_config(self, gindex: int, pindex: int, group: Group) -> Group: ...

        def get_state_buffer(self, p: Tensor, dtype: torch.dtype) -> Tensor: ...

        def update_step(self, group: Group, p: Tensor, gindex: int, pindex: int) -> None: ...

        def load_state_dict(self, state_dict: StateDict, move_to_device: bool = True) -> None: ...

else:
    _Base = Optimizer  # the rest comes with bitsandbytes' own class, beside which this one is put

SMALL, BLOCK = (
    4096,
    256,
)  # bitsandbytes' own: numbers below which state stays in float32, numbers that share a scale
CODE_BOOKS = {"qmap1": "dynamic", "qmap2": "udynamic"}


class BitsAndBytesAdamW(Optimizer):
    """What the bitsandbytes variants share; they differ in the bits of the state and in where it lives."""

    bits: ClassVar[int]
    paged: ClassVar[bool]
    provides: ClassVar[set[str]] = {"clippable", "first_order", "per_parameter"}
    requires: ClassVar[set[str]] = {"backward"}

    class Config(OptimizerConfig):
        beta1: float = Field(0.9, ge=0, lt=1)
        beta2: float = Field(0.999, ge=0, lt=1)
        eps: float = Field(1e-8, gt=0)

    @classmethod
    def build(cls, params: list[ParamInfo], config: Config) -> torch.optim.Optimizer:
        """One group, and one with 32-bit state for embeddings, as bitsandbytes' own Embedding asks for."""
        coarse = [info.param for info in params if info.role != "embedding"]
        fine = [info.param for info in params if info.role == "embedding"]
        groups = [{"params": coarse, "optim_bits": cls.bits}, {"params": fine, "optim_bits": 32}]
        return _resumable_adamw()(
            [group for group in groups if group["params"]],
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            weight_decay=config.weight_decay,
            optim_bits=cls.bits,
            is_paged=cls.paged and not any(info.param.is_meta for info in params),
        )

    @classmethod
    def state_bytes(cls, info: ParamInfo, config: Config) -> int:
        """Two moments; of small tensors, and with 32 bits, in float32, else in 8 bits with a scale for each block."""
        numbers = info.param.numel()
        if cls.bits == 32 or numbers < SMALL or info.role == "embedding":
            return 8 * numbers
        return 2 * numbers + 8 * -(-numbers // BLOCK)


class Resumable(_Base):
    """Goes before a bitsandbytes optimizer: `load_state_dict(state_dict())` then goes on bit for bit."""

    shared_state = tuple(CODE_BOOKS)

    def get_config(self, gindex: int, pindex: int, group: Group) -> Group:
        """Settings of one parameter; the group's bits go before the optimizer's."""
        return {**super().get_config(gindex, pindex, group), "optim_bits": group["optim_bits"]}

    def update_step(self, group: Group, p: Tensor, gindex: int, pindex: int) -> None:
        """Move a parameter and its state, which is there by now; no kernel can where they have no storage."""
        if not p.is_meta:
            super().update_step(group, p, gindex, pindex)

    def state_dict(self) -> StateDict:
        """The state without the code books, constants that all parameters share."""
        state: StateDict = super().state_dict()
        for held in state["state"].values():
            for tensors in (held, held.get(self._FSDP_WRAPPED_QUANT_STATE_KEY, {})):
                for name in CODE_BOOKS:
                    tensors.pop(name, None)
        return state

    def load_state_dict(self, state_dict: StateDict, move_to_device: bool = True) -> None:
        """Take the state back: code books added, and moments in the kind of memory that new ones get."""
        super().load_state_dict(state_dict, move_to_device)
        for param, held in self.state.items():
            if "absmax1" in held:
                for name, book in CODE_BOOKS.items():
                    self.name2qmap[book] = self.name2qmap[book].to(param.device)
                    held[name] = self.name2qmap[book]
            if self.is_paged and param.device.type != "cpu":
                for name in ("state1", "state2"):
                    held[name] = self.get_state_buffer(param, dtype=held[name].dtype).copy_(held[name])


@cache
def _resumable_adamw() -> Callable[..., torch.optim.Optimizer]:
    """The class, made on first use, when its parent is imported.

    Raises:
        MissingExtra: bitsandbytes is not installed; the message holds the install line.
    """
    made: type[torch.optim.Optimizer] = type("ResumableAdamW", (Resumable, _bitsandbytes_optim().AdamW), {})
    return made


def _bitsandbytes_optim() -> ModuleType:
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    logger.addFilter(_is_news)
    try:
        return importlib.import_module("bitsandbytes.optim")
    except ImportError as error:
        raise MissingExtra(
            f"optimizer.method: this optimizer needs bitsandbytes, which cannot be imported ({error}); "
            "install it with `pip install bitsandbytes`, or use `optimizer: adamw`"
        ) from error
    finally:
        logger.removeFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """False for the offer of a faster 4-bit inference kernel, which no optimizer calls."""
    return not record.getMessage().startswith("Failed to load CPU gemm_4bit_forward")
