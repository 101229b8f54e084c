"""Attention over packed documents as transformers calls it: registered as `segmented`, beside the stock backends.

What is computed is in `lrft.ops.attention`; here it is told what the layers ask for, and refuses what it does not know.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from lrft.ops.attention import Documents, attend
from lrft.ops.attention_blocks import Rule

# What some layers hand to their attention function that changes scores, and is not known here.
CHANGE_SCORES = ("position_bias", "attention_bias", "head_mask", "indices", "block_indices", "sinks")
MASKLESS = ("segmented", "varlen")  # backends that are told of the documents instead
WINDOWS: set[int] = (
    set()
)  # windows that layers computed with, and that models asked masks for, since `listening`
MASKS: set[int] = set()


class Unsupported(Exception):
    """A layer wants attention that this backend does not compute; the message says which layer and what."""


@contextmanager
def listening() -> Iterator[None]:
    """Compare what a model asks of its masks with what its layers compute, since no mask is built here.

    Raises:
        Unsupported: the model asked for masks with a window or in chunks that no layer told of, or combines them with
            one of its own.
    """
    from transformers import AttentionMaskInterface

    WINDOWS.clear()
    MASKS.clear()
    for name in MASKLESS:
        AttentionMaskInterface.register(name, _no_mask)
    try:
        yield
    finally:
        # A name that is known there is asked for a mask in every pass, and before it is, transformers looks whether a
        # row is packed: on a GPU a wait for the device. A name that is not known gets none, and no wait.
        for name in MASKLESS:
            AttentionMaskInterface._global_mapping.pop(name, None)
    if untold := MASKS - WINDOWS:
        raise Unsupported(f"a mask of {max(untold)} tokens is asked for that no attention layer tells of")


def register() -> None:
    """Make `segmented` known to transformers; doing it twice is harmless."""
    from transformers import AttentionInterface

    AttentionInterface.register("segmented", segmented_attention)


def _no_mask(*args: object, local_size: int | None = None, use_vmap: bool = False, **kwargs: object) -> None:
    """The documents say who sees whom; a dense mask would only repeat it. Remembers the window asked for.

    Raises:
        Unsupported: the model combines the causal mask with one of its own.
    """
    if use_vmap:  # transformers' sign of a mask function that a model brought
        raise Unsupported("the model masks pairs of tokens by a rule of its own")
    if local_size is not None:
        MASKS.add(local_size)


def segmented_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    documents: Documents | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Causal attention within each document; padding yields zeros.

    Args:
        query: (B, H, L, D); key and value: (B, K, L, D).
        s_aux: (H,) scores of a key that has no value and takes its share of the softmax (attention sinks).
        documents: (row, start, end) of each document.

    Returns:
        (B, L, H, D), and None for the weights.

    Raises:
        Unsupported: the layer asks for something that is not computed here.
    """
    if documents is None:
        raise RuntimeError(
            "segmented attention needs the documents of the batch; call the model through `hidden`"
        )
    unknown = [name for name in CHANGE_SCORES if kwargs.get(name) is not None]
    if attention_mask is not None or is_causal is False or unknown:
        what = "a mask of its own" if not unknown else unknown[0]
        raise Unsupported(
            f"{type(module).__name__} asks for {what}, which segmented attention does not compute"
        )
    asked = sliding_window or 0
    WINDOWS.add(asked)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    return attend(query, key, value, documents, Rule(scale, asked, softcap, dropout, s_aux)), None
