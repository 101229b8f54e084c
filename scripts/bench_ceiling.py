"""How fast this machine multiplies matrices of a model's own shapes, and the step that this would allow.

    python scripts/bench_ceiling.py                    4 rows of 256 tokens
    python scripts/bench_ceiling.py --rows 8 --record FILE.json

A training step of a frozen base is, in operations,

    F = 4 N T + 4 d V S + 6 P T + 6 L H D sum_i n_i (n_i + 1)

with N numbers in the linear layers of the body, T real tokens, d the width, V the vocabulary, S supervised tokens, P
numbers that train, L layers of H heads of D channels, n_i the tokens of document i. A product with a matrix of N
numbers is 2 N a token; it comes once forward and once for the gradient of its input, and of what trains a third time
for its own gradient: 4 where a full fine-tune has 6. Attention is causal: n (n + 1) / 2 pairs, 4 H D each in forward
(scores, values) and twice that in backward. What is computed twice (decoding, checkpointing) and what is no product
counts nothing. A method that forms large factors out of few numbers does more than P says, and one whose numbers are
no matrices does less.

The ceiling is F at the measured rate: for every shape of the model x W^T and dy W at the step's number of tokens, in
bfloat16 or, on a processor that multiplies it more slowly, in float32, median of several calls, weighted by how often
the shape comes. One JSON line at the end.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from bench_pairs import settle
from bench_record import leave
from bench_rows import Work, make_work
from bench_settings import Settings, parser, settings_of
from lrft.build.measure import measure as measured
from lrft.model.load import load_model
from lrft.model.sites import linear_sites
from lrft.ops.products import working

REPEATS = 20


@dataclass(frozen=True)
class Shapes:
    """What the arithmetic of a step needs of a model.

    Attributes:
        maps: (out, in) of the body's linear layers -> how many there are.
        head: (vocabulary, width).
        attention: layers x heads x channels.
    """

    maps: dict[tuple[int, int], int]
    head: tuple[int, int]
    attention: int

    @property
    def body(self) -> int:
        """Numbers in the body's linear layers."""
        return sum(out * into * times for (out, into), times in self.maps.items())


def main(given: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, record."""
    made = parser(__doc__)
    made.add_argument("--repeats", type=int, default=REPEATS)
    arguments = made.parse_args(given)
    settings = settings_of(arguments)
    work, shapes = make_work(settings), shapes_of(settings)
    found = ceiling(shapes, work, settings.device, arguments.repeats)
    for row in found["shapes"]:
        out, into, tokens, times = row["out"], row["in"], row["tokens"], row["times"]
        print(
            f"{tokens} x {into} -> {out}, {times} times: forward {row['forward']:.0f} GFLOP/s, dx {row['dx']:.0f}"
        )
    found["trained"] = measured(settings.recipe(), optimizer=False)["trainable"]
    operations = step_operations(shapes, work[0].lengths, work[0].targets, found["trained"])
    found["tokens_per_second"] = tokens_per_second(found["gflops"], operations, work[0].tokens)
    print(
        f"{found['gflops']:.0f} GFLOP/s over the model's shapes; with {settings.adapter} a step is "
        f"{operations / work[0].tokens / 1e9:.3f} GFLOP a token: at most {found['tokens_per_second']:.0f} tokens/s"
    )
    return leave("ceiling", settings.record(), found, given, arguments.record)


def shapes_of(settings: Settings) -> Shapes:
    """Read off the model, without its weights."""
    model = load_model(settings.recipe().model, meta=True)
    config: Any = model.hf.config.get_text_config()
    heads = config.num_attention_heads
    channels = getattr(config, "head_dim", None) or config.hidden_size // heads
    maps = Counter((site.out_features, site.in_features) for site in linear_sites(model).values())
    head = model.hf.get_output_embeddings()
    assert head is not None
    vocabulary, width = head.weight.shape
    return Shapes(dict(maps), (vocabulary, width), config.num_hidden_layers * heads * channels)


def step_operations(shapes: Shapes, lengths: Sequence[int], targets: int, trained: int) -> int:
    """F of the formula above."""
    tokens = sum(lengths)
    attention = 6 * shapes.attention * sum(n * (n + 1) for n in lengths)
    return (
        4 * shapes.body * tokens
        + 4 * shapes.head[0] * shapes.head[1] * targets
        + 6 * trained * tokens
        + attention
    )


def tokens_per_second(gflops: float, operations: int, tokens: int) -> float:
    """Tokens of a step over the seconds that its operations take at a rate."""
    return tokens * gflops * 1e9 / operations


def ceiling(shapes: Shapes, work: Sequence[Work], device: str, repeats: int = REPEATS) -> dict[str, Any]:
    """GFLOP/s over all shapes, and of each of them, at the tokens of the first step."""
    tokens, targets = work[0].tokens, work[0].targets
    kinds = [(out, into, tokens, times) for (out, into), times in shapes.maps.items()]
    rows, operations, seconds = [], 0.0, 0.0
    for out, into, count, times in [*kinds, (*shapes.head, min(targets, 256), -(-targets // 256))]:
        forward, dx = rates(out, into, count, device, repeats)
        once = 2.0 * out * into * count
        operations += 2 * once * times
        seconds += times * once * (1 / forward + 1 / dx) / 1e9
        rows.append({"out": out, "in": into, "tokens": count, "times": times, "forward": forward, "dx": dx})
    return {"gflops": operations / seconds / 1e9, "shapes": rows}


def rates(out: int, into: int, tokens: int, device: str, repeats: int) -> tuple[float, float]:
    """GFLOP/s of x W^T and of dy W, in the precision in which bfloat16 numbers are multiplied here."""
    x = torch.randn(tokens, into, device=device)
    dtype = working(x.to(torch.bfloat16))
    weight, dy = (
        torch.randn(out, into, device=device, dtype=dtype),
        torch.randn(tokens, out, device=device, dtype=dtype),
    )
    x = x.to(dtype)
    once = 2.0 * out * into * tokens / 1e9
    return once / median(lambda: F.linear(x, weight), repeats), once / median(lambda: dy @ weight, repeats)


def median(call: Callable[[], object], repeats: int) -> float:
    """Median seconds of a call after two that do not count."""
    taken = []
    for _ in range(repeats + 2):
        settle()
        began = time.perf_counter()
        call()
        settle()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[2:])


if __name__ == "__main__":
    main()
