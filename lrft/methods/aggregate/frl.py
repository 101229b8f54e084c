"""FRL: clients vote by the order of their entries, and no number of theirs counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lrft.core.aggregate import Aggregator, Reply, Tensors, Turn
from lrft.registry.axes import AGGREGATORS
from lrft.registry.config import Field, MethodConfig

MOVED = ".moved"  # after the name of a tensor: how many of its entries went down, and how many stayed


@AGGREGATORS.register
class FRL(Aggregator):
    """Federated rank learning: clients send an order of the entries of every tensor, the server adds up places.

        r_k   = argsort(theta_k - theta),  place_k = argsort(r_k)
        votes = sum_k place_k,  global order = argsort(votes)
        theta <- theta + lr v(votes)

    with r_k the entries of a tensor from the one that fell most to the one that rose most, and v the sorted values of
    the method, one for each place of the global order: from -1 to 1 in even steps, 0 in the middle but for the `keep`
    share at both ends; equal votes share their mean. A client has one vote, however far it moves anything: a minority
    changes the places of an entry by at most its number times n.

    Shapes: orders (n,) of each tensor of n entries, in int16 up to 32,768 of them and int32 above.
    Bytes: up 2 n or 4 n a tensor (n log2 n bits are the least) and 16; down everything that trains.
    State: none.
    Source: Mozaffari, Shejwalkar and Houmansadr, "Every Vote Counts: Ranking-Based Training of Federated Learning to
    Resist Poisoning Attacks", USENIX Security 2023 (FRL, arXiv 2110.04350), and the authors' code, whose vote this is.
    Departures: theirs trains scores of a network of random frozen weights from scratch, of which the upper half by size
    is used, and gives the sorted scores of the start to the global order. Carried to fine-tuning: what is ordered is
    the update of the tensors that train, and the sorted values of a place are a step. Entries that did not move have
    one place together, the middle of them, for which two counts a tensor travel too; theirs break ties by position.
    Advice: use as many clients a round as there may be; fewer than half of them may be hostile.
    """

    class Config(MethodConfig):
        lr: float = Field(0.001, gt=0, description="largest step of an entry in a round")
        keep: float = Field(
            0.5, gt=0, le=1, description="share of the entries that move, from both ends of the order"
        )

    def up(self, start: Mapping[str, Tensor], trained: Mapping[str, Tensor], turn: Turn) -> Tensors:
        found: Tensors = {}
        for name, before in start.items():
            update = trained[name].float().flatten() - before.float().flatten()
            if not update.isfinite().all():
                raise ValueError(f"client {turn.client} trained {name} to numbers that are not finite")
            small = update.numel() <= 2**15
            found[name] = find_rank(update).to(torch.int16 if small else torch.int32)
            found[name + MOVED] = torch.stack([(update < 0).sum(), (update == 0).sum()])
        return found

    def check(self, held: Mapping[str, Tensor], reply: Reply, round: int) -> None:
        super().check(held, reply, round)
        for name in held:
            _places(reply, name)

    def aggregate(self, held: Mapping[str, Tensor], replies: Sequence[Reply], round: int) -> Tensors:
        found: Tensors = {}
        for name, value in held.items():
            votes = torch.zeros(value.numel(), dtype=torch.float64, device=value.device)
            for reply in replies:
                votes += _places(reply, name).to(votes.device)
            step = _shared(votes, self._values(value.numel()).to(votes.device))
            found[name] = value.float() + self.config.lr * step.float().view_as(value)
        return found

    def _values(self, count: int) -> Tensor:
        """The sorted values, (count,) float64."""
        values = torch.linspace(-1, 1, count, dtype=torch.float64) if count > 1 else torch.zeros(1).double()
        idle = count - round(self.config.keep * count)
        first = (count - idle) // 2
        values[first : first + idle] = 0
        return values


def find_rank(scores: Tensor) -> Tensor:
    """Entries from the least score to the greatest; equal ones in their order."""
    return scores.flatten().argsort(stable=True)


def vote(rankings: Tensor) -> Tensor:
    """The global order of (clients, n) orders: by the sum of the places of every entry."""
    return rankings.argsort(dim=1).sum(0).argsort(stable=True)


def _places(reply: Reply, name: str) -> Tensor:
    """The place of every entry in a client's order, (n,) float64; a client that sends no order is refused.

    Raises:
        ValueError: an entry is named twice, or a count cannot be.
    """
    order = reply.message[name].long()
    fell, stayed = reply.message[name + MOVED].tolist()
    if not torch.equal(order.sort().values, torch.arange(len(order), device=order.device)):
        raise ValueError(f"client {reply.client} sent no order of the entries of {name}")
    if fell < 0 or stayed < 0 or fell + stayed > len(order):
        raise ValueError(f"client {reply.client} counted entries of {name} that there are not")
    places = torch.arange(len(order), dtype=torch.float64, device=order.device)
    if stayed:
        places[fell : fell + stayed] = fell + (stayed - 1) / 2
    return torch.empty_like(places).scatter_(0, order, places)


def _shared(votes: Tensor, values: Tensor) -> Tensor:
    """The value of every entry by its votes; equal votes have the mean of the values of their places."""
    order = votes.argsort(stable=True)
    _, inverse, counts = torch.unique_consecutive(votes[order], return_inverse=True, return_counts=True)
    sums = torch.zeros(len(counts), dtype=values.dtype, device=values.device).scatter_add_(0, inverse, values)
    return torch.empty_like(values).scatter_(0, order, (sums / counts)[inverse])
