"""How many tokens a model has positions for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from lrft.registry.errors import DataError

if TYPE_CHECKING:
    from lrft.model.hf import HF

SHORTER = "shorten it, or lower train.max_length"


def positions_of(hf: HF) -> int | None:
    """How many positions the model has; None of a model without a limit."""
    with suppress(AttributeError):
        return hf.config.get_text_config().max_position_embeddings
    return None


def check_lengths(
    hf: HF, lengths: Sequence[int], where: Callable[[int], str], instead: str = SHORTER
) -> None:
    """Refuse rows that need more positions than the model has.

    Args:
        lengths: tokens of each row.
        where: names a row in the message.
        instead: what to do about it.

    Raises:
        DataError: names the first such row.
    """
    positions = positions_of(hf)
    for index, length in enumerate(lengths):
        if positions is not None and length > positions:
            raise DataError(
                f"{where(index)}: needs {length} tokens, but the model has {positions} positions; {instead}"
            )
