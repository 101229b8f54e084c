"""Tokens per second of greedy generation, with the adapter and without, of lrft and of PEFT.

    python scripts/bench_generate.py                          4 prompts of 64 tokens, 32 new tokens each
    python scripts/bench_generate.py --rows 1 --length 256 --new 128

Nothing stops a row early, so every call makes rows x new tokens, and both libraries are given the same prompts. Timed
in turn as in bench_train.py: lrft beside PEFT, and each with its adapter beside itself without. One JSON line at
the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bench_pairs import measure, summary, warm
from bench_record import leave
from bench_rows import random_work
from bench_settings import parser, settings_of
from bench_sides import lrft_side, peer_side, require
from bench_train import guarded
from lrft.core.adapted import adapters_off
from lrft.evaluation.generate import generate
from lrft.evaluation.subject import Subject

Prompts = list[list[int]]


@dataclass
class Writer:
    """What generates; `step` gives how many tokens came, where a training step gives its loss."""

    name: str
    step: Callable[[Prompts], float]


def main(given: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, report.

    Raises:
        UsageError: the peer is not installed or has no form of the method.
    """
    made = parser(__doc__)
    made.set_defaults(length=64)
    made.add_argument("--new", type=int, default=32, help="tokens generated in each row")
    made.add_argument("--peer", default="peft", choices=["peft", "none"])
    arguments = made.parse_args(given)
    settings = settings_of(arguments)
    prompts = [document.input_ids for document in random_work(settings)[0].documents]
    ours = lrft_side(settings)
    with_adapter, bare = lrft_writers(ours.model, arguments.new)
    couples = [(with_adapter, bare)]
    if arguments.peer != "none":
        require(arguments.peer)
        theirs = peer_side(arguments.peer, settings, ours.keys, ours.trained)
        other, other_bare = peft_writers(theirs.model, arguments.new, arguments.device)
        couples += [(with_adapter, other), (bare, other_bare), (other, other_bare)]
    tokens = [arguments.new * len(prompts)]
    pairings = []
    for a, b in couples:
        warm([a, b], prompts, 1)
        pairs, discarded = measure(a, b, [prompts], settings.pairs, settings.foreign)
        pairings.append(summary(a, b, pairs, discarded, tokens))
        for name, rate in pairings[-1].get("tokens_per_second", {}).items():
            print(f"{name}: {rate:.1f} tokens/s")
    result = {"new": arguments.new, "pairings": pairings}
    return leave("generate", settings.record(), result, given, arguments.record)


def lrft_writers(model: Any, new: int) -> tuple[Writer, Writer]:
    """Lrft's own generation with the adapters on and off."""
    subject = Subject(model, None, None, None, set(), 0, 1 << 30)  # type: ignore[arg-type]  # no text is made

    def write(prompts: Prompts) -> float:
        return float(sum(map(len, generate(subject, prompts, new, stop_ids=()))))

    def bare(prompts: Prompts) -> float:
        with adapters_off(model.hf):
            return write(prompts)

    return Writer("lrft", write), Writer("lrft bare", bare)


def peft_writers(model: Any, new: int, device: str) -> tuple[Writer, Writer]:
    """The same through PEFT's model, at transformers' defaults, the stop token put off."""
    model.eval()
    options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}

    def write(prompts: Prompts) -> float:
        ids = torch.tensor(prompts, device=device)
        with torch.no_grad():
            written = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
        return float(written.numel() - ids.numel())

    def bare(prompts: Prompts) -> float:
        with model.disable_adapter():
            return write(prompts)

    return Writer("peft", write), Writer("peft bare", bare)


if __name__ == "__main__":
    raise SystemExit(guarded(main))
