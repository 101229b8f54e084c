"""Whether rows have more tokens than a model has positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lrft.model.rope import positions_of
from lrft.registry.errors import DataError

if TYPE_CHECKING:
    from lrft.model.hf import HF

SHORTER = "shorten it, or lower train.max_length"


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
    positions = positions_of(hf.config.get_text_config())
    for index, length in enumerate(lengths):
        if positions is not None and length > positions:
            raise DataError(
                f"{where(index)}: needs {length} tokens, but the model has {positions} positions; {instead}"
            )
