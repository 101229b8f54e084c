"""Bytes of what a run holds all the time: stored weights and the optimizer's state, and the room that both work in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn

from lrft.build.decide import quantizer
from lrft.build.held import Held
from lrft.build.measure import bytes_per_weight, optimizer_bytes
from lrft.core.adapted import adapted
from lrft.core.frozen import FrozenLinear
from lrft.core.params import ParamInfo
from lrft.model.asked import SMALL
from lrft.model.load import DTYPES
from lrft.model.skeleton import Skeleton
from lrft.ops.frozen_head import WIDENED
from lrft.ops.products import FEW, working
from lrft.recipe.schema import Recipe
from lrft.recipe.sections import ModelSection
from lrft.registry.axes import INITS, OPTIMIZERS, QUANTIZERS

SIDE = 256  # of the sample that a format without a formula is asked about

CONTEXT = 500 * 2**20  # allowed for a CUDA context with torch's kernels
IMPORTED = 480 * 2**20  # a process on a CPU that has imported everything and read its rows
# What a CPU's kernels of half precision keep for themselves, as scripts/check_plan.py finds it, with gradients and
# without.
KERNELS, FORWARD_KERNELS = 64 * 2**20, 20 * 2**20
# What glibc's allocator keeps of a step between blocks, in the widest states of every layer; more where gradients of
# one micro-batch lie among what the next one keeps. Found by scripts/check_plan.py --whole.
BETWEEN, ACCUMULATED = 1.5, 3.75
SCORED = 44 * 2**20  # the same of scoring and merging, beside the rooms of float32 numbers

_samples: dict[str, tuple[float, float]] = {}


def dense_beside(section: ModelSection, hf: nn.Module, base: int) -> int:
    """Parameters of a base that a merge holds dense: of one that streams its embedding and head, else all `base`."""
    if section.weights != "pretrained" or section.head is not None or base <= SMALL:
        return base
    ends = (hf.get_submodule("model.embed_tokens"), hf.get_submodule("lm_head"))
    return sum(one.numel() for one in {parameter for end in ends for parameter in end.parameters()})


def keeps_dense(recipe: Recipe) -> bool:
    """Whether the recipe's storage holds weights as they are."""
    return "dense_base" in QUANTIZERS.declared(recipe.quantization.method).provides


def stored_bytes(recipe: Recipe) -> float:
    """Bytes of a weight in the recipe's storage, as the format says or read off a sample."""
    if keeps_dense(recipe):
        return float(DTYPES[recipe.model.dtype].itemsize)
    bits = QUANTIZERS.get(recipe.quantization.method).bits(recipe.quantization)
    return _sample(recipe)[0] if bits is None else bits / 8


def decoding_room(recipe: Recipe) -> float:
    """Bytes a weight that decoding takes beside the dense weight; formats with a kernel of their own take none."""
    if keeps_dense(recipe):
        return 0.0
    bits = QUANTIZERS.get(recipe.quantization.method).bits(recipe.quantization)
    return _sample(recipe)[1] if bits is None else 0.0


def _sample(recipe: Recipe) -> tuple[float, float]:
    """Stored bytes a weight, and those of decoding it, of a small matrix."""
    key = f"{recipe.quantization.model_dump_json()} {recipe.model.dtype}"
    if key not in _samples:
        layer = quantizer(recipe)(torch.zeros(SIDE, SIDE).to(DTYPES[recipe.model.dtype]), None)
        with Held() as held:
            dense = layer.weight()
            room = held.peak - dense.nbytes
        _samples[key] = bytes_per_weight(recipe), room / SIDE**2
    return _samples[key]


def state_bytes(recipe: Recipe, infos: list[ParamInfo]) -> int:
    """Bytes of the optimizer's state, by its own formula or by a step on tensors without storage."""
    cls, total = OPTIMIZERS.get(recipe.optimizer.method), 0
    for info in infos:
        copied = _is_copied(recipe, info)
        wide = nn.Parameter(torch.empty_like(info.param, dtype=torch.float32)) if copied else info.param
        size = cls.state_bytes(replace(info, param=wide), recipe.optimizer)
        if size is None:
            return optimizer_bytes(recipe, infos)
        total += size + (wide.nbytes if copied and recipe.trainable.update == "master" else 0)
    return total


def checkpoint_bytes(recipe: Recipe, infos: Sequence[ParamInfo]) -> int:
    """Bytes of a checkpoint at least: what trains, and the optimizer's state where it has a formula for it.

    Steps no optimizer, so the parameters may be those of a run.
    """
    cls, total = OPTIMIZERS.get(recipe.optimizer.method), 0
    for info in infos:
        numbers, copied = info.param.numel(), _is_copied(recipe, info)
        wide = nn.Parameter(torch.empty(info.param.shape, device="meta")) if copied else info.param
        state = cls.state_bytes(replace(info, param=wide), recipe.optimizer) or 0
        total += (
            info.param.nbytes + state + (4 * numbers if copied and recipe.trainable.update == "master" else 0)
        )
    return total


def step_room(recipe: Recipe, infos: list[ParamInfo]) -> int:
    """Bytes that the optimizer's step takes for itself, one parameter after another: three tensors of its size.

    Where float32 copies are stepped, all gradients are there in float32 too, and copies that do not stay.
    """
    largest = max(info.param.nbytes for info in infos)
    copied = [4 * info.param.numel() for info in infos if _is_copied(recipe, info)]
    held = sum(copied) * (1 if recipe.trainable.update == "master" else 2)
    return 3 * max(largest, *copied, 0) + (max(copied, default=0) if recipe.optimizer.per_layer else held)


class Widths(NamedTuple):
    """The most inputs and outputs of a linear map of a model's body, and the most weights; how many layers it has."""

    inputs: int
    outputs: int
    weights: int
    layers: int


def widths_of(hf: Skeleton) -> Widths:
    """Of a model without weights; of one without a linear map in its body those of the head."""
    layers = [m for m in hf.modules() if isinstance(m, nn.Linear | FrozenLinear)]
    body = [m for m in layers if m is not hf.lm_head] or layers
    inputs, outputs = max(m.in_features for m in body), max(m.out_features for m in body)
    return Widths(inputs, outputs, max(m.in_features * m.out_features for m in body), len(hf.model.layers))


def widening_room(recipe: Recipe, widths: Widths, device: str, tokens: int, trains: bool = True) -> int:
    """Bytes of the rooms that are kept on a CPU that is given float32 numbers for products of bfloat16.

    Args:
        tokens: of a micro-batch.
        trains: or scores.
    """
    dtype = DTYPES[recipe.model.dtype]
    if device != "cpu" or recipe.adapter is None or working(torch.empty(FEW, 1, dtype=dtype)) == dtype:
        return 0
    # Input and its gradient, and that without what is dropped; output, its gradient, and those of two siblings.
    dropped = trains and getattr(recipe.adapter, "dropout", 0) > 0
    wide = tokens * ((2 + dropped) * widths.inputs + 4 * widths.outputs)
    return 4 * (wide + widths.weights + WIDENED)


def allocator_room(recipe: Recipe, widths: Widths, device: str, tokens: int, recomputed: int) -> int:
    """Bytes between blocks that a CPU's allocator does not give back while it trains.

    Args:
        tokens: of a micro-batch.
        recomputed: layers that are computed again, which keep about half as many blocks.
    """
    if device != "cpu":
        return 0
    times = ACCUMULATED if recipe.train.gradient_accumulation > 1 else BETWEEN
    states = tokens * widths.outputs * DTYPES[recipe.model.dtype].itemsize
    return round(times * (widths.layers - recomputed / 2) * states)


def scoring_room(recipe: Recipe, widths: Widths, device: str, tokens: int) -> int:
    """Bytes that a CPU's allocator keeps while a batch of so many tokens is scored, rooms of float32 numbers included.

    They take what they would with gradients, as whole processes of `lrft eval` were measured.
    """
    if device != "cpu":
        return 0
    return SCORED + widening_room(recipe, widths, device, tokens, trains=False)


def saving_room(recipe: Recipe, infos: list[ParamInfo], state: int) -> int:
    """Bytes that writing a checkpoint takes on the host: of each of its files a copy, its bytes and the file's."""
    trained = sum(info.param.nbytes for info in infos)
    return max(3 * trained, trained + 3 * state)


def _is_copied(recipe: Recipe, info: ParamInfo) -> bool:
    """Whether a float32 copy of the parameter is stepped."""
    return recipe.trainable.update != "in_place" and info.param.dtype != torch.float32


def constant_bytes(hf: nn.Module) -> int:
    """Bytes of adapters that do not train: frozen factors, buffers."""
    tensors = (t for _, m in adapted(hf) for t in (*m.adapter.parameters(), *m.adapter.buffers()))
    return sum({id(tensor): tensor.nbytes for tensor in tensors if not tensor.requires_grad}.values())


def keeps_start(recipe: Recipe) -> bool:
    """Whether adapters keep their start beside a base that still holds it."""
    if recipe.init is None or not INITS.get(recipe.init.method)(recipe.init).residual:
        return False
    wanted = getattr(recipe.init, "residual", "rewrite")
    return wanted == "anchor" or (wanted is None and not keeps_dense(recipe))


def runtime_bytes(device: str, item: int, trains: bool = True) -> int:
    """What a process takes before it has a model; `item` is the bytes of a number of the precision."""
    if device == "cuda":
        return CONTEXT
    return IMPORTED + ((KERNELS if trains else FORWARD_KERNELS) if item < 4 else 0)
