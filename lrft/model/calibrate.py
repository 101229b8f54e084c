"""Measuring a pretrained model at its sites, by inputs and output gradients, before anything is attached."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from lrft.core.axes import SIGNALS
from lrft.core.batch import Batch
from lrft.core.objective import Objective
from lrft.core.params import Site
from lrft.core.stages import Signals, Statistic
from lrft.model.causal_lm import CausalLM


def calibrate(
    model: CausalLM,
    sites: dict[str, Site],
    batches: Iterable[Batch],
    objective: Objective,
    wants: Iterable[str],
    progress: Callable[[int], None] | None = None,
) -> Signals:
    """Statistics of every site over the micro-batches, each weighing the same.

    Weights need no gradient: dL/dW is the sum of dy^T x, so this works on any storage and under activation
    checkpointing. The model computes in training mode, as the authors' codes do.

    Returns:
        Site name -> statistic name -> tensor on the CPU.
    """
    statistics = {site: {name: SIGNALS.get(name)() for name in wants} for site in sites}
    handles = [model.hf.get_input_embeddings().register_forward_hook(_track)]
    for name in sites:
        handles.append(model.hf.get_submodule(name).register_forward_hook(_watch(statistics[name])))
    was_training = model.training
    model.train()
    try:
        for done, batch in enumerate(batches):
            moved = batch.to(model.device)
            (objective(model, moved) / max(1, moved.targets.numel())).backward()
            if progress is not None:
                progress(done + 1)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return {
        site: {name: statistic.result().cpu() for name, statistic in found.items()}
        for site, found in statistics.items()
    }


def _track(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """With every weight frozen nothing would require a gradient before the first adapter."""
    return output.requires_grad_()


def _watch(statistics: dict[str, Statistic]) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if not output.requires_grad:
            return
        x = inputs[0].detach().flatten(0, -2)

        def take(dy: Tensor) -> None:
            for statistic in statistics.values():
                statistic.update(x, dy.detach().flatten(0, -2))

        output.register_hook(take)

    return hook
