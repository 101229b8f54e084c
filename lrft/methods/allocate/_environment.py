"""What a policy of ranks sees of the world: a channel that changes, and the tokens of a step."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import torch

from lrft.core.notes import say
from lrft.core.run import Run
from lrft.core.stages import SitePlan
from lrft.registry.errors import RecipeError


class Channel:
    """A simulated channel, whose signal-to-noise ratio and bandwidth are drawn anew from lists.

    Attributes:
        now: ratio in dB and bandwidth in Hz; at their best until something is drawn.
    """

    def __init__(
        self, snr_db: Sequence[float], bandwidth: Sequence[float], latency: float, bits: int
    ) -> None:
        self.choices, self.latency, self.bits = (snr_db, bandwidth), latency, bits
        self.now = [max(snr_db), max(bandwidth)]

    def draw(self, generator: torch.Generator) -> None:
        """Another ratio and another bandwidth, each as likely."""
        for place, among in enumerate(self.choices):
            self.now[place] = among[int(torch.randint(len(among), (), generator=generator))]

    def cost(self, numbers: int) -> float:
        """What so many numbers take of the bits that go through in time, 1 being all of them."""
        snr, bandwidth = self.now
        capacity = self.latency * bandwidth * math.log2(1 + 10 ** (snr / 10))
        return numbers * self.bits / max(capacity, 1.0)

    def places(self) -> list[float]:
        """Where ratio and bandwidth are in their lists' ranges, from 0 to 1; 0.5 in a range of one value."""
        ends = [(min(among), max(among)) for among in self.choices]
        return [
            0.5 if low == high else (now - low) / (high - low)
            for now, (low, high) in zip(self.now, ends, strict=True)
        ]


def check_room(channel: Channel, plans: Sequence[SitePlan], least: int) -> None:
    """Refuse a channel that carries no rank of the sites, and tell of one that carries few.

    Args:
        least: the lowest rank of a site.

    Raises:
        RecipeError: not even the lowest ranks fit through it at its best.
    """
    sizes = [plan.site.in_features + plan.site.out_features + 1 for plan in plans]
    if (cost := channel.cost(least * sum(sizes))) > 1:
        message = (
            f"at its best the channel carries 1 / {cost:.3g} of the adapters at min_rank {least}; "
            "write a higher bandwidth or latency, or fewer bits"
        )
        raise RecipeError(message, "allocate.bandwidth")
    doubled = sum((least + (plan.rank or least)) * size for plan, size in zip(plans, sizes, strict=True))
    if (middle := channel.cost(doubled) / 2) > 1:
        say(
            f"allocate: an untrained policy draws about half of adapter.rank, which costs {middle:.3g} of what the "
            "channel carries at its best; few vectors of ranks will fit, or none"
        )


def check_alike(run: Run, ranks: dict[str, int]) -> None:
    """Refuse ranks that are others in another process: their gradients would be added up all the same.

    Raises:
        RecipeError: they are.
    """
    sign = zlib.crc32(repr(list(ranks.values())).encode())
    if run.team.largest(sign) != sign or -run.team.largest(-sign) != sign:
        raise RecipeError(
            "the processes chose different ranks for one step; train with one process", "allocate.method"
        )


def describe_tokens(run: Run, unknown: int | None) -> list[float]:
    """Entropy of the tokens of the step over the logarithm of how many kinds there are, and the share of `unknown`.

    Over all processes; every one has to ask.
    """
    found = [b.input_ids[row, start:end] for b in run.micro_batches for row, start, end in b.documents]
    tokens = torch.cat([part.cpu() for part in found]) if found else torch.zeros(0, dtype=torch.int64)
    kinds = run.team.largest(int(tokens.max()) + 1 if len(tokens) else 0)
    counts = run.summed(torch.bincount(tokens, minlength=kinds).to(run.device)).cpu()
    seen = counts[counts > 0].double() / counts.sum()
    if not len(seen):
        return [0.0, 0.0]
    entropy = float(-(seen * seen.log2()).sum()) / max(math.log2(len(seen)), 1.0)
    missing = 0 if unknown is None or unknown >= len(counts) else int(counts[unknown])
    return [min(max(entropy, 0.0), 1.0), missing / int(counts.sum())]
