"""What restarts share: folding with reproducible draws, and what becomes of the optimizer's memory of old factors."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lrft.core.adapter import Adapter
from lrft.core.params import ParamInfo
from lrft.core.run import Run
from lrft.ops.draws import seed_generators
from lrft.registry.errors import RecipeError

# What optimizers call their moments.
MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "state1", "state2")


def check_renewable(run: Run) -> None:
    """Refuse adapters that cannot start anew.

    Raises:
        RecipeError: names the first.
    """
    for _, site in run.adapted():
        if type(site.adapter).reset is Adapter.reset:
            message = f"{site.adapter.name} cannot start anew; choose another adapter, or restart: null"
            raise RecipeError(message, "adapter.method")


def fold_all(run: Run, renew: bool = False) -> None:
    """Move every adapter's change into its base and start the adapter anew; the function stays.

    The draws depend on (seed, step, site) alone: on no dropout before them, and alike on every process.

    Args:
        renew: as of `Adapted.fold`.
    """
    for index, (_, site) in enumerate(run.adapted()):
        cuda = {parameter.device for parameter in site.adapter.parameters() if parameter.is_cuda}
        with torch.random.fork_rng(devices=sorted(cuda, key=str)):
            seed_generators(_seed(run, index))
            site.fold(renew)


def reset_moments(run: Run, reset: str, ratio: float) -> None:
    """Forget most of what the optimizer knows of the adapters' old factors.

    Args:
        reset: `random` zeroes a random share of every moment, each with a mask of its own; `magnitude` the smallest
            share, tensor by tensor; both leave step counts alone. `all` forgets the whole state.
        ratio: that share.

    Raises:
        RecipeError: the optimizer keeps its moments in a form that has no single entries.
    """
    if reset == "all":
        run.reset_optimizer([info.param for info in _of_adapters(run)])
        return
    for index, moment in enumerate(moments(run)):
        if reset == "magnitude":
            kept = above_quantile(moment.abs().float(), ratio)
        else:
            generator = torch.Generator().manual_seed(_seed(run, 1_000_000 + index))
            kept = (torch.rand(moment.shape, generator=generator) > ratio).to(moment.device)
        moment.mul_(kept.to(moment.dtype))


def above_quantile(magnitude: Tensor, ratio: float) -> Tensor:
    """Which entries lie above the `ratio` quantile, as a bool tensor of the same shape.

    Being above the interpolated quantile is being above the order statistic below it, which has no size limit as
    torch.quantile has.
    """
    place = math.floor(ratio * (magnitude.numel() - 1))
    return magnitude > magnitude.flatten().kthvalue(place + 1).values


def moments(run: Run) -> Iterator[Tensor]:
    """The moments of the adapters' parameters, in a fixed order.

    Raises:
        RecipeError: the optimizer keeps some that are codes, or that are of another shape than the parameter.
    """
    for info in _of_adapters(run):
        state = run.optimizer.state.get(info.param, {})
        for name in MOMENTS:
            moment = state.get(name)
            if not torch.is_tensor(moment):
                continue
            if moment.shape != info.param.shape or not moment.is_floating_point():
                kind = type(run.optimizer).__name__
                message = (
                    f"{kind} keeps moments that cannot be zeroed one by one; write all, or optimizer: adamw"
                )
                raise RecipeError(message, "restart.reset")
            yield moment


def _of_adapters(run: Run) -> list[ParamInfo]:
    return [info for info in run.parameters if info.site]


def _seed(run: Run, index: int) -> int:
    """A seed for draw `index` of this step, unlike the seeds of the step itself."""
    return ((run.seed * 1_000_003 + run.step) * 2_000_003 + index + 1) % 2**63
