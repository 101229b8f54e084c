"""Where the time of a step went: every recorded call is told to one part, by name, callers and shapes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

STEP = "lrft::step"
DECODE = "lrft::decode"

BASE, LOW_RANK, ATTENTION = "base GEMM", "low-rank GEMM", "attention"
POINTWISE, COPIES = "norms, rotary, activation", "copies and casts"
HEAD, DECODING, OPTIMIZER = "head and loss", "decoding", "optimizer"
OTHER = "Python and other"
PARTS = (BASE, LOW_RANK, ATTENTION, POINTWISE, COPIES, HEAD, DECODING, OPTIMIZER, OTHER)

# What an operation is called within, the first match counts.
WITHIN = (
    (OPTIMIZER, re.compile(r"^Optimizer\.|_foreach_|vector_norm")),
    (DECODING, re.compile(rf"^{DECODE}|dequant")),
    (HEAD, re.compile(r"(?i)cross_?entropy|logprobs|nll_loss|log_softmax")),
    (ATTENTION, re.compile(r"(?i)segmented|attention|sdpa|flash|^aten::_?softmax")),
)
COPY = re.compile(r"^aten::(copy_|_to_copy|to|clone|contiguous|fill_|zero_|zeros|ones|cat|stack)$")
PRODUCT = re.compile(r"^aten::(mm|addmm_?|bmm|baddbmm_?|mv|_scaled_mm|_grouped_mm)$|mkldnn.*linear")
# They hand on the same numbers, or a place for new ones.
VIEW = re.compile(
    r"^aten::(view|_?reshape\w*|_unsafe_view|transpose|t|mT|permute|expand\w*|slice|select|narrow|split\w*|unsqueeze|"
    r"squeeze|as_strided|alias|detach\w*|unbind|chunk|flatten|resolve_\w+|empty\w*|new_empty\w*|resize_|set_|item|"
    r"_local_scalar_dense|is_nonzero|lift_fresh|linear|matmul|einsum|result_type|size|stride)$"
)
COMPILED = re.compile(r"(?i)fused|compiled")  # kernels that a compiler made of many operations


@dataclass(frozen=True)
class Operation:
    """One recorded call.

    Attributes:
        callers: names of the calls around it, the nearest first.
        shapes: of its inputs.
        seconds: spent in it and in nothing that it called.
    """

    name: str
    callers: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    seconds: float


@dataclass(frozen=True)
class Sizes:
    """What products are recognised by.

    Attributes:
        maps: (out, in) of every linear map of the base model, the head left out.
        head: (vocabulary, width).
        ranks: the small side of every trained matrix.
        tokens: positions of a micro-batch, padding included.
    """

    maps: frozenset[tuple[int, int]]
    head: tuple[int, int]
    ranks: frozenset[int]
    tokens: frozenset[int]


def seconds_by_part(operations: Iterable[Operation], wall: float, sizes: Sizes) -> dict[str, float]:
    """Part -> seconds, in the order of `PARTS`; what of `wall` no operation took is `Python and other`."""
    found = dict.fromkeys(PARTS, 0.0)
    for operation in operations:
        found[part_of(operation, sizes)] += operation.seconds
    found[OTHER] += max(0.0, wall - math.fsum(found.values()))
    return found


def part_of(operation: Operation, sizes: Sizes) -> str:
    """The part of the step that an operation belongs to."""
    name = operation.name
    ours = not name.startswith(("aten::", "bitsandbytes::")) and not COMPILED.search(name)
    if ours or VIEW.search(
        name
    ):  # Python of an autograd function, of a range, of the loop; views and allocation
        return OPTIMIZER if name.startswith("Optimizer.") else OTHER
    for part, pattern in WITHIN:
        if any(pattern.search(called) for called in (name, *operation.callers)):
            return part
    if PRODUCT.search(name):
        return _product(operation, sizes)
    return COPIES if COPY.search(name) else POINTWISE


def _product(operation: Operation, sizes: Sizes) -> str:
    """A product of matrices, by its three sizes: the tokens, and the two of the matrix that they are multiplied by."""
    dims = _dimensions(operation.shapes)
    if dims is None:
        return POINTWISE
    for pairs, part in (({sizes.head}, HEAD), (sizes.maps, BASE)):
        thirds = [third for pair in pairs for third in _without(dims, pair)]
        if any(third not in sizes.ranks or third in sizes.tokens for third in thirds):
            return part
    batched = operation.name.startswith(("aten::bmm", "aten::baddbmm"))
    return ATTENTION if batched and not sizes.ranks & set(dims) else LOW_RANK


def _dimensions(shapes: Sequence[Sequence[int]]) -> tuple[int, int, int] | None:
    """(m, k, n) of the product of the last two matrices among the inputs, leading batches left out."""
    matrices = [tuple(shape) for shape in shapes if len(shape) >= 2]
    for a, b in reversed(list(pairwise(matrices))):  # what a product is added to comes first
        if a[-1] == b[-2]:
            return a[-2], a[-1], b[-1]
    return None


def _without(dims: tuple[int, int, int], pair: tuple[int, int]) -> Iterator[int]:
    """The size that is left of a product's three when those of a matrix are taken out, if they are among them."""
    left = list(dims)
    for size in pair:
        if size not in left:
            return
        left.remove(size)
    yield left[0]


def table(seconds: Mapping[str, float], steps: Sequence[int], device: str) -> str:
    """The parts of a step as text: milliseconds a step and share, one line each.

    Args:
        seconds: part -> seconds, over all the steps together.
        steps: the steps that were looked at, counted from 1.
    """
    whole = math.fsum(seconds.values())
    count = len(steps)
    lines = [
        f"steps {steps[0]} to {steps[-1]} on {device}, while being recorded: {whole / count:.3f} s a step",
        "",
    ]
    lines.append(f"{'part of the step':<28}{'ms':>10}{'share':>10}")
    for part, spent in (*seconds.items(), ("all", whole)):
        lines.append(f"{part:<28}{spent / count * 1e3:>10.1f}{spent / whole:>10.1%}")
    return "\n".join(lines) + "\n"
