"""Whether a choice of subspace fits the shapes, or the count, of what is projected; refused with what would fit."""

from __future__ import annotations

from lrft.core.params import ParamInfo
from lrft.methods.optim._frugal_subspace import length, size


def check_matrix(info: ParamInfo, choice: str, side: str, density: float) -> None:
    """Refuse what is no matrix, and more singular vectors than a matrix has.

    Raises:
        ValueError: names the parameter, and the setting to change.
    """
    shape = info.param.shape
    if len(shape) != 2:
        raise ValueError(
            f"project: {info.name} has {len(shape)} dimension(s) and only choice block takes it; "
            f"leave {info.role} out, or write choice: block"
        )
    rank = size(shape, choice, side, density)
    wide = length(shape, choice, side) > min(shape)
    if choice == "svd" and wide and rank >= min(shape):
        raise ValueError(
            f"side: the singular value decomposition of {info.name} {tuple(shape)} has {min(shape)} directions, "
            f"and density {density} asks for {rank} on this side; write side: std, or a smaller density"
        )


def check_blocks(count: int, density: float, order: str) -> None:
    """Refuse a share of so many matrices that rounds to none, and pairs of an odd number.

    Raises:
        ValueError: names the setting to change.
    """
    active = round(count * density)
    if density > 0 and active == 0:
        raise ValueError(
            f"density: {density} of {count} matrices rounds to none; write at least {0.5 / count:.3g} "
            "(or 0, to have no moments)"
        )
    if order == "mirror" and (count % 2 or active % 2):
        raise ValueError(
            f"order: mirror takes matrices in pairs, and there are {count} of which {active} are active; "
            "write order: descending"
        )
