"""Attention over packed documents by torch's own flash kernel for rows of many lengths: registered as `varlen`.

No mask is made and keys are not repeated, so it takes memory that grows with the tokens of a row and not with their
square. The kernel is a GPU's, in half precision; here it is told what a layer asks for, and refuses what it cannot.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import cache
from typing import Any, cast

from torch import Tensor, nn

from lrft.model.attention import CHANGE_SCORES, WINDOWS, Unsupported

Kernel = Callable[..., Tensor]
NAME = "varlen"


def register() -> None:
    """Make `varlen` known to transformers; doing it twice is harmless."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, varlen_attention)


def is_here() -> bool:
    """Whether this torch has the kernel, with arguments that are known."""
    try:
        return arguments() is not None
    except ImportError:
        return False


def kernel() -> Kernel:
    """The function of torch.

    Raises:
        ImportError: this torch has none.
    """
    return cast(Kernel, importlib.import_module("torch.nn.attention.varlen").varlen_attn)


def arguments() -> frozenset[str] | None:
    """What the kernel can be told beside the documents; None where it takes them otherwise than is known here."""
    return _arguments(kernel())


@cache
def _arguments(function: Kernel) -> frozenset[str] | None:
    names = list(inspect.signature(function).parameters)
    if names[:7] != ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]:
        return None
    found = frozenset(names[7:])
    return found if found & {"is_causal", "window_size"} else None


def varlen_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Causal attention within each document; what is between documents is one of its own.

    Args:
        query: (1, H, T, D); key and value: (1, K, T, D), all rows one after another.
        cu_seq_lens_q: (documents + 1,) int32, where each begins, and T.
        max_length_q: tokens of the longest.

    Returns:
        (1, T, H, D), and None for the weights.

    Raises:
        Unsupported: the layer asks for something that the kernel does not compute.
    """
    if cu_seq_lens_q is None or max_length_q is None:
        raise RuntimeError(
            "varlen attention needs the bounds of the documents; call the model through `hidden`"
        )
    known = arguments()
    assert known is not None, "a kernel that `is_here` refuses"
    asked = _unknown(kwargs, attention_mask, dropout, is_causal)
    if value.shape[-1] != query.shape[-1]:
        asked.append("values of another width than its keys")
    window, scale = sliding_window or 0, scaling if scaling is not None else query.shape[-1] ** -0.5
    if window and "window_size" not in known:
        asked.append("a window")
    if asked:
        raise Unsupported(
            f"{type(module).__name__} asks for {asked[0]}, which varlen attention does not compute"
        )
    WINDOWS.add(window)
    q, k, v = (x.transpose(1, 2).squeeze(0) for x in (query, key, value))
    if "scale" not in known:
        q = q * (scale * q.shape[-1] ** 0.5)  # the kernel's own is D^-1/2
    if q.shape[1] != k.shape[1] and "enable_gqa" not in known:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    told = _told(known, scale, window, q.shape[1] != k.shape[1])
    out = kernel()(q, k, v, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q, **told)
    return out.unsqueeze(0), None


def _unknown(
    kwargs: dict[str, object], mask: Tensor | None, dropout: float, is_causal: bool | None
) -> list[str]:
    """What a layer asks for that changes scores and is not known to the kernel, in words."""
    names = (*CHANGE_SCORES, "softcap", "s_aux")
    found = [name for name in names if kwargs.get(name) is not None]
    found += ["a mask of its own"] if mask is not None or is_causal is False else []
    return found + (["dropout of its probabilities"] if dropout else [])


def _told(known: frozenset[str], scale: float, window: int, grouped: bool) -> dict[str, Any]:
    """How the kernel is told of scale, window and groups, as far as it takes them."""
    told: dict[str, Any] = {"scale": scale, "enable_gqa": grouped}
    if "window_size" in known:
        told["window_size"] = (
            window - 1,
            0,
        )  # keys before the query's own, all where it is -1; none after it
    else:
        told["is_causal"] = True
    return {name: value for name, value in told.items() if name in known}
