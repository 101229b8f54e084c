"""A training step of lrft beside the same step of PEFT + transformers or of TRL, in one process, in turn.

    python scripts/bench_train.py                            4 rows of 256 tokens, every position learnt, LoRA on NF4
    python scripts/bench_train.py --gsm8k FILE               real rows: a peer pads them, lrft packs them
    python scripts/bench_train.py --adapters lora,dora,miss  each beside lrft's LoRA, and beside PEFT where it has it
    python scripts/bench_train.py --curve rank               the cost over the rank: also length, batch, layers
    python scripts/bench_train.py --peer none --adapter miss beside lrft's LoRA alone

What counts as a step that others did not disturb is in bench_pairs.py, the arithmetic of the share of the ceiling in
bench_ceiling.py. Only the two models of a pair are held at a time. Needs the `dev` extra and the small model (see
scripts/setup-env); one JSON line at the end, which `--record FILE.json` appends to a file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from bench_ceiling import Shapes, ceiling, shapes_of, step_operations, tokens_per_second
from bench_pairs import measure, summary, warm
from bench_record import leave
from bench_rows import Work, make_work
from bench_settings import Settings, parser, settings_of
from bench_sides import PEERS, Side, lrft_side, peer_side, require
from lrft.registry.axes import ADAPTERS
from lrft.registry.did_you_mean import did_you_mean
from lrft.registry.errors import LrftError, UsageError

REFERENCE = "lora"
# What is varied -> the setting, and its values where none are given; of layers they are shares of the model's.
CURVES: dict[str, tuple[str, tuple[float, ...]]] = {
    "length": ("length", (64, 128, 256, 512)),
    "batch": ("rows", (1, 2, 4, 8)),
    "rank": ("rank", (4, 16, 64, 256)),
    "layers": ("adapted", (0.1, 0.25, 0.5, 1.0)),
}


def main(given: Sequence[str] | None = None) -> dict[str, Any]:
    """Parse, measure what was asked for, report.

    Raises:
        UsageError: a peer that is not installed, or has no form of what was asked for.
        RecipeError: settings that do not go together.
    """
    made = parser(__doc__)
    made.add_argument("--peer", default="peft", choices=[*PEERS, "none"])
    made.add_argument("--adapters", help="methods, separated by commas")
    made.add_argument("--curve", choices=list(CURVES))
    made.add_argument("--values", help="of the curve, separated by commas")
    arguments = made.parse_args(given)
    settings = settings_of(arguments)
    if arguments.adapters and arguments.curve:
        raise UsageError("--adapters and --curve are two measurements; run one after the other")
    if arguments.peer != "none":
        require(arguments.peer)
    if arguments.curve:
        values = None if arguments.values is None else [int(value) for value in arguments.values.split(",")]
        result = curve(settings, arguments.peer, arguments.curve, values)
    elif arguments.adapters:
        result = adapters(settings, arguments.peer, arguments.adapters.split(","))
    else:
        result = one(settings, arguments.peer)
    return leave("train", settings.record(), result, given, arguments.record)


def one(settings: Settings, peer: str) -> dict[str, Any]:
    """One method beside a peer, or without one beside lrft's LoRA."""
    work, shapes = make_work(settings), shapes_of(settings)
    rate = ceiling(shapes, work, settings.device)["gflops"]
    return {"gflops": rate, "pairings": [pairing(settings, peer, work, shapes, rate)]}


def adapters(settings: Settings, peer: str, names: Sequence[str]) -> dict[str, Any]:
    """Each method beside lrft's LoRA, and beside the peer where PEFT has a form of it; what fails is named.

    Raises:
        UsageError: there is no such method.
    """
    for name in names:
        if name not in ADAPTERS.names():
            raise UsageError(f"--adapters: {name} is no adapter{did_you_mean(name, ADAPTERS.names())}")
    work, shapes = make_work(settings), shapes_of(settings)
    rate = ceiling(shapes, work, settings.device)["gflops"]
    pairings = []
    for name in names:
        for against in ("none", peer) if peer != "none" else ("none",):
            if name != REFERENCE or against != "none":
                pairings.append(attempt(settings.but(adapter=name), against, work, shapes, rate))
    print(methods_table(pairings))
    return {"gflops": rate, "pairings": pairings}


def attempt(
    settings: Settings, peer: str, work: Sequence[Work], shapes: Shapes, rate: float
) -> dict[str, Any]:
    """A pairing, or why there is none."""
    try:
        return pairing(settings, peer, work, shapes, rate)
    except LrftError as error:
        sides = [f"lrft:{settings.adapter}", f"{peer}:{settings.adapter}"]
        if peer == "none":
            sides[1] = f"lrft:{REFERENCE}"
        print(f"{sides[0]} beside {sides[1]}: {error}", flush=True)
        return {"sides": sides, "n": 0, "discarded": 0, "samples": [], "ratio": None, "missed": str(error)}


def pairing(
    settings: Settings, peer: str, work: Sequence[Work], shapes: Shapes, rate: float
) -> dict[str, Any]:
    """Time two sides in turn; with the share of the ceiling that each of them reached.

    Args:
        rate: measured GFLOP/s.
    """
    ours = lrft_side(settings)
    other: Side | None = None
    try:
        other = beside(settings, peer, ours)
        warm([ours], work[0])
        warm_peer(other, work[0])
        pairs, discarded = measure(ours, other, work, settings.pairs, settings.foreign)
        found = summary(ours, other, pairs, discarded, [item.tokens for item in work])
        found["trained"] = {side.name: side.trained for side in (ours, other)}
    finally:
        for side in (ours, other):
            if side is not None:
                side.release()
    if found["ratio"] is not None:
        found["share"] = shares(found, work, shapes, rate)
        for name, share in found["share"].items():
            speed = found["tokens_per_second"][name]
            print(
                f"{name}: {speed:.0f} tokens/s, {share:.0%} of the ceiling at {rate:.0f} GFLOP/s", flush=True
            )
    return found


def beside(settings: Settings, peer: str, ours: Side) -> Side:
    """What a step is compared with: the peer's, or without a peer lrft's own LoRA.

    Raises:
        UsageError: LoRA is beside itself, or the peer cannot.
    """
    if peer != "none":
        return peer_side(peer, settings, ours.keys, ours.trained)
    if settings.adapter == REFERENCE:
        raise UsageError(f"--peer none compares with lrft's own {REFERENCE}; name another --adapter")
    return lrft_side(settings.but(adapter=REFERENCE))


def warm_peer(side: Side, item: Work) -> None:
    """Warm up a side; what a peer's own code cannot do is told in a sentence.

    Raises:
        UsageError: it raised.
    """
    try:
        warm([side], item)
    except Exception as error:  # whatever a peer raises
        if side.name.startswith("lrft:"):
            raise
        reason = (str(error).strip().splitlines() or [""])[0]
        raise UsageError(
            f"{side.name} fails on this step ({type(error).__name__}: {reason[:160]})"
        ) from error


def shares(found: dict[str, Any], work: Sequence[Work], shapes: Shapes, rate: float) -> dict[str, float]:
    """Side -> operations of a step over those that the measured rate allows in its time, median over the pairs."""
    lengths = [length for item in work for length in item.lengths]
    targets = sum(item.targets for item in work)
    return {
        name: found["tokens_per_second"][name]
        / tokens_per_second(
            rate, step_operations(shapes, lengths, targets, found["trained"][name]), sum(lengths)
        )
        for name in found["sides"]
    }


def curve(settings: Settings, peer: str, what: str, values: Sequence[int] | None) -> dict[str, Any]:
    """A pairing at every value, each with its own ceiling."""
    setting, chosen = CURVES[what]
    if values is None:
        whole = layers(settings) if what == "layers" else 1
        values = sorted({max(1, round(value * whole)) for value in chosen})
    points = []
    for value in values:
        there = settings.but(**{setting: value})
        print(f"{what} {value}", flush=True)
        points.append({"x": value, **one(there, peer)["pairings"][0]})
    return {"curve": what, "points": points}


def layers(settings: Settings) -> int:
    """Decoder layers of the model."""
    from transformers import AutoConfig

    count: int = AutoConfig.from_pretrained(settings.folder()).get_text_config().num_hidden_layers
    return count


def methods_table(pairings: Sequence[dict[str, Any]]) -> str:
    """Times over those of lrft's LoRA, and PEFT's over lrft's, one method a line."""
    lines = [f"{'method':<16}{'/ lrft LoRA':>14}{'peer / lrft':>14}"]
    rows: dict[str, dict[str, str]] = {}
    for found in pairings:
        library = found["sides"][1].partition(":")[0]
        name = found["sides"][0].partition(":")[2]
        ratio = found["ratio"]
        own = library == "lrft"
        value = "-" if ratio is None else f"{1 / ratio['median'] if own else ratio['median']:.2f}"
        rows.setdefault(name, {})["own" if own else "peer"] = value
    for name, row in rows.items():
        default = "1.00" if name == REFERENCE else "-"
        lines.append(f"{name:<16}{row.get('own', default):>14}{row.get('peer', '-'):>14}")
    return "\n".join(lines)


def guarded(call: Callable[[], object]) -> int:
    """Exit code of a benchmark: what the user can mend is one sentence."""
    try:
        call()
    except LrftError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(guarded(main))
