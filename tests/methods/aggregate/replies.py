"""Parameters of a few sites, and replies of clients that trained them, without any model."""

from __future__ import annotations

import torch
from torch import nn

from lrft.core.aggregate import Aggregator, Federation, Reply, Turn
from lrft.core.params import ParamInfo
from lrft.registry.axes import AGGREGATORS

# out, in and how many of a layer of Llama-3.2-3B, which has 28.
LLAMA_3B = [(3072, 3072, 2), (1024, 3072, 2), (8192, 3072, 2), (3072, 8192, 1)]


def lora(rank=3, shapes=((5, 4), (6, 7)), seed=0, device=None):
    """A and B at sites `s0`, `s1`, ... of shapes (out, in)."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for place, (out, fan_in) in enumerate(shapes):
        for name, role, shape in (("A", "lora_A", (rank, fan_in)), ("B", "lora_B", (out, rank))):
            value = torch.empty(shape, device=device)
            value = value if device else torch.randn(shape, generator=generator)
            found.append(ParamInfo(f"s{place}.{name}", nn.Parameter(value), role, f"s{place}", scaling=2.0))
    return found


def made(name, infos, clients=4, chosen=None, seed=0, **settings) -> Aggregator:
    federation = Federation(clients, chosen or clients, seed)
    return AGGREGATORS.get(name)(AGGREGATORS.settings(name, **settings), federation, infos)


def held_of(infos):
    return {info.name: info.param.detach().clone() for info in infos}


def trained_by(held, clients, size=0.1, seed=1):
    """What each client ends with: the start and a draw of its own."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {name: value + size * torch.randn(value.shape, generator=generator) for name, value in held.items()}
        for _ in range(clients)
    ]


def replies_of(aggregator, held, trained, examples=None, round=0, clients=None):
    """What these clients send, of which each holds so many rows."""
    numbers = clients or range(len(trained))
    counts = examples or [1] * len(trained)
    return [
        Reply(client, count, aggregator.up(held, tensors, Turn(client, round)))
        for client, count, tensors in zip(numbers, counts, trained, strict=True)
    ]


def products(tensors, infos):
    """The change B A of every site."""
    sites = sorted({info.site for info in infos})
    return {site: tensors[f"{site}.B"].double() @ tensors[f"{site}.A"].double() for site in sites}
