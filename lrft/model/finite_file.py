"""A safetensors file of numbers that are all finite: every writer of whole files but a checkpoint's own asks for it."""

from __future__ import annotations

from collections.abc import Mapping

from safetensors.torch import save
from torch import Tensor

from lrft.registry.errors import NumericalError

EARLIER = (
    "name an earlier checkpoint of the run (RUN/checkpoints/step-N), or train again with a lower optimizer.lr"
)


def finite_file(tensors: Mapping[str, Tensor], remedy: str, metadata: dict[str, str] | None = None) -> bytes:
    """The bytes of the file, its tensors in the order of their names.

    Args:
        remedy: what to do about a number that is none.

    Raises:
        NumericalError: a tensor holds one; nothing is to be written then.
    """
    held = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    bad = [name for name, one in held.items() if one.is_floating_point() and not one.isfinite().all()]
    if bad:
        count = int((~held[bad[0]].isfinite()).sum())
        others = f", and {len(bad) - 1} more such tensors" if len(bad) > 1 else ""
        raise NumericalError(
            f"{count} of the {held[bad[0]].numel()} numbers of {bad[0]} are not finite{others}, so nothing was "
            f"written; {remedy}"
        )
    return bytes(save(held, metadata=metadata))
