"""What FRUGAL refuses before it starts: projected parameters that the choice of the subspace does not fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lrft.core.params import ParamInfo
from lrft.methods.optim._frugal_subspace import length, size

if TYPE_CHECKING:
    from lrft.methods.optim.frugal import FRUGAL


def check_projected(params: list[ParamInfo], projected: list[ParamInfo], config: FRUGAL.Config) -> None:
    """Refuse parameters that the choice of the subspace does not fit.

    Raises:
        ValueError: nothing is projected, or the choice does not fit the shapes or the count of what is.
    """
    if not projected:
        roles = ", ".join(sorted({info.role for info in params}))
        raise ValueError(f"project: no parameter has a role in {config.project}; the roles here are {roles}")
    if config.choice == "block":
        _check_blocks(len(projected), config)
        return
    for info in projected:
        shape = info.param.shape
        if len(shape) != 2:
            raise ValueError(
                f"project: {info.name} has {len(shape)} dimension(s) and only choice block takes it; "
                f"leave {info.role} out, or write choice: block"
            )
        rank = size(shape, config.choice, config.side, config.density)
        wide = length(shape, config.choice, config.side) > min(shape)
        if config.choice == "svd" and wide and rank >= min(shape):
            raise ValueError(
                f"side: the singular value decomposition of {info.name} {tuple(shape)} has {min(shape)} directions, "
                f"and density {config.density} asks for {rank} on this side; write side: std, or a smaller density"
            )


def _check_blocks(count: int, config: FRUGAL.Config) -> None:
    active = round(count * config.density)
    if config.density > 0 and active == 0:
        raise ValueError(
            f"density: {config.density} of {count} matrices rounds to none; write at least {0.5 / count:.3g} "
            "(or 0, to have no moments)"
        )
    if config.order == "mirror" and (count % 2 or active % 2):
        raise ValueError(
            f"order: mirror takes matrices in pairs, and there are {count} of which {active} are active; "
            "write order: descending"
        )
