"""A small library that nobody trained, and generators of it."""

from __future__ import annotations

import torch

from lrft.core.generate import Known, Layout, Sizes
from lrft.registry.axes import GENERATORS

LAYOUT = Layout({"a.A": (3, 5), "a.B": (7, 3), "b.A": (3, 4), "b.B": (4, 3)})
WIDTH = 6
SMALL = {
    "icm_lora": {"latent": 4, "channels": [4, 4, 4], "epochs": 3, "rows": 2},
    "sg_lora": {"latent": 3, "width": 8, "max_steps": 4, "batch_size": 2},
    "softmax_merge": {},
    "drag_and_drop": {
        **{"prompts": 2, "tokens": 3, "pool": 4, "chunk": 4, "stages": 2, "kernel": 3},
        **{"max_steps": 4, "batch_size": 2, "lr": 1e-3},
    },
}


def library(name, tasks=3, samples=4, seed=0):
    draws = torch.Generator().manual_seed(seed)
    shape = (4, 3, WIDTH) if name == "drag_and_drop" else (WIDTH,)
    return [
        Known(
            f"task{k}",
            torch.randn(LAYOUT.size, generator=draws)
            + 0.3 * torch.randn(samples, LAYOUT.size, generator=draws),
            torch.randn(shape, generator=draws),
        )
        for k in range(tasks)
    ]


def generator(name, known=None, seed=0, **settings):
    """A prepared one, and its library."""
    known = library(name) if known is None else known
    config = GENERATORS.settings(name, **{**SMALL[name], **settings})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = GENERATORS.get(name)(config, Sizes(LAYOUT, tuple(known[0].condition.shape), len(known)))
    made.prepare(known)
    return made, known


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def vector(factors):
    """The vector of what was drawn."""
    tensors = {}
    for site, (A, B) in factors.items():
        tensors[f"{site}.A"], tensors[f"{site}.B"] = A, B
    return LAYOUT.joined(tensors)
