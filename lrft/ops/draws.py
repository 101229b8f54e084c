"""Seeding torch's own generators."""

from __future__ import annotations

from functools import cache

import torch


def seed_generators(seed: int) -> None:
    """Seed torch's own generators of every device: `torch.manual_seed`, less what that does where the CPU is alone.

    Where no accelerator is, torch would keep the seed for three that may come, each with the stack that it came from
    written out: more than the work of a small step.
    """
    if _has_accelerator():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


@cache
def _has_accelerator() -> bool:
    return torch.accelerator.is_available()
