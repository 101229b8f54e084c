"""The most memory that `lrft merge --requantize` holds: a float32 model beside the run's, or two of them."""

from __future__ import annotations

from typing import cast

from torch import nn

from lrft.build.measured import Peak
from lrft.core.frozen import FrozenLinear
from lrft.export import gguf_names
from lrft.export.fidelity import room
from lrft.model.experts import paths_apart
from lrft.model.load import DTYPES
from lrft.model.skeleton import Skeleton
from lrft.recipe.schema import Recipe
from lrft.registry.axes import QUANTIZERS

WIDE = 4  # bytes of a number in float32, in which layers are rounded
ROUNDING = 8 * WIDE  # a weight: it and what is rounded, in order and back, and the codes


def rounded_peaks(recipe: Recipe, hf: Skeleton, base: int, merge: Peak, scored: Peak) -> dict[str, Peak]:
    """The peaks of a merge into few bits, of the largest such storage: `requantize`, and `gguf` where llama.cpp has it.

    With P numbers in the base, R bytes of the run's model, S of the layers in few bits and C of a comparison:

        requantize  R + max(4 P + S + one block's rounding, P as exported + S + the model read back + C)
        gguf        R + max(4 P + S + one block's rounding, 2 * 4 P + S + C), as the file is read back in float32

    Args:
        base: P.
        merge, scored: the peaks of a merge that is not rounded, and of an evaluation.
    """
    if recipe.prune is not None or recipe.model.head is not None:
        return {}
    config, item = hf.config, DTYPES[recipe.model.dtype].itemsize
    export = DTYPES[recipe.export.dtype or recipe.model.dtype].itemsize
    layers = _layers(hf)
    numbers = sum(one.in_features * one.out_features for one in layers.values())
    tokens = max(recipe.eval.batch_tokens, recipe.train.max_length)
    compared = room(tokens, config.hidden_size * item, config.vocab_size)
    once = WIDE * base + _rounding(recipe, layers, config.hidden_size, scored, WIDE // item)
    found = {}
    for name, trait in (("requantize", "levels"), ("gguf", "file_levels")):
        few = round(numbers * _bits(trait) / 8)
        back = few + (base - numbers) * export
        beside = base * export + back if name == "requantize" else 2 * WIDE * base
        found[name] = few + max(once, beside + compared)
    if config.model_type not in gguf_names.FAMILIES:
        del found["gguf"]
    rest = merge["total"] - merge["working"]
    return {
        name: cast(Peak, {**merge, "working": size, "total": rest + size}) for name, size in found.items()
    }


def _layers(hf: Skeleton) -> dict[str, FrozenLinear | nn.Linear]:
    """The linear layers that are rounded, by path: those of the blocks, experts left out."""
    apart = paths_apart(hf)
    return {
        name: module
        for name, module in hf.named_modules()
        if isinstance(module, FrozenLinear | nn.Linear)
        and name.startswith("model.layers.")
        and not (apart and name.startswith(apart))
    }


def _rounding(
    recipe: Recipe, layers: dict[str, FrozenLinear | nn.Linear], hidden: int, scored: Peak, wider: int
) -> int:
    """What measuring and rounding one block takes: the rows around it, and its moments or one of its layers."""
    rows = 2 * recipe.export.calibration_rows * recipe.train.max_length * hidden * WIDE
    if not layers:
        return rows
    first = next(iter(layers)).split(".")[2]
    # Layers of one part of a block that have inputs of one width are taken to read one tensor.
    inputs = {
        (name.rsplit(".", 1)[0], one.in_features)
        for name, one in layers.items()
        if name.split(".")[2] == first
    }
    squares, largest = sum(width**2 for _, width in inputs), max(one.in_features for one in layers.values())
    factors = 2 * WIDE * squares + 3 * 8 * largest**2  # decomposed in float64
    weights = WIDE * squares + ROUNDING * max(one.in_features * one.out_features for one in layers.values())
    passing = wider * (scored["activations"] + scored["working"])
    return rows + max(factors, weights, passing)


def _bits(trait: str) -> float:
    """The most bits a weight of the storages that provide it."""
    found = [name for name in QUANTIZERS.names() if trait in QUANTIZERS.declared(name).provides]
    bits = [QUANTIZERS.get(name).bits(QUANTIZERS.declared(name).config(method=name)) for name in found]
    return max((float(one) for one in bits if one is not None), default=8.0 * WIDE)
