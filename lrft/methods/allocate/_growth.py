"""Ranks that grow: what that asks of an adapter, and when it happens."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from lrft.core.elastic import Elastic
from lrft.registry.errors import RecipeError


@runtime_checkable
class Growable(Protocol):
    """What growing asks of an adapter, beyond showing components."""

    watch: bool

    def composed(self) -> Tensor:
        """The change of the weight, (out, in)."""

    def take_gradient(self) -> Tensor | None:
        """Its gradient, summed since the last call; collected while `watch` is true."""

    def scale_for(self, rank: int) -> None:
        """Scale as an adapter of that rank does."""


class Timetable(Protocol):
    """The settings of an allocation that grows."""

    @property
    def target_rank(self) -> int: ...

    @property
    def start_rank(self) -> int: ...

    @property
    def top_h(self) -> int: ...

    @property
    def init_warmup(self) -> int | None: ...

    @property
    def interval(self) -> int | None: ...


def growable(adapter: Elastic) -> Growable:
    """The adapter, if it can grow.

    Raises:
        RecipeError: it cannot.
    """
    if not isinstance(adapter, Growable):
        message = f"{adapter.name} does not tell the gradient of its change; choose adapter svd_lora"
        raise RecipeError(message, "allocate.method")
    return adapter


def growth_steps(config: Timetable, increment: int, capacities: list[int], total: int) -> tuple[int, int]:
    """The settings init_warmup and interval in steps, for a run of `total` steps.

    Raises:
        RecipeError: the growths do not fit into the run.
    """
    growths = count_growths(config, increment, capacities)
    warmup = total // 100 if config.init_warmup is None else config.init_warmup
    interval = config.interval or max(1, (total // 3 - warmup) // max(1, growths))
    if (total - 1) // interval - warmup // interval < growths:
        message = (
            f"{growths} growths {interval} steps apart do not fit into the {total} steps of the run, with a warm-up of "
            f"{warmup}; write a shorter interval, a higher top_h or increment, or train for longer"
        )
        raise RecipeError(message, "allocate.interval")
    return warmup, interval


def count_growths(config: Timetable, increment: int, capacities: list[int]) -> int:
    """How many growths of top_h sites by `increment` lead from start_rank to target_rank.

    Raises:
        RecipeError: the target cannot be met exactly, or not within the sites' capacities.
    """
    sites, each = len(capacities), config.top_h * increment
    missing = (config.target_rank - config.start_rank) * sites
    if missing < 0:
        message = (
            f"start_rank {config.start_rank} is more than target_rank; write at most {config.target_rank}"
        )
        raise RecipeError(message, "allocate.start_rank")
    if missing % each:
        fits = increment if missing % increment == 0 else 1
        top = next(top for top in range(config.top_h, 0, -1) if missing // fits % top == 0)
        message = (
            f"{sites} sites miss {missing} components of their target, which is no multiple of top_h * increment = "
            f"{each}; write top_h: {top} and increment: {fits}"
        )
        raise RecipeError(message, "allocate.top_h")
    room = increment * sum(max(0, capacity - config.start_rank) // increment for capacity in capacities)
    if room < missing:
        message = (
            f"growing by {increment} from rank {config.start_rank} adds at most {room} components within adapter.rank, "
            f"and {missing} are asked for; write a higher adapter.rank"
        )
        raise RecipeError(message, "allocate.target_rank")
    return missing // each
