"""Finding where a number stopped being finite."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from lrft.core.context import computing
from lrft.core.objective import Objective
from lrft.core.run import Run
from lrft.files.failure import WriteError
from lrft.files.write import write_file
from lrft.training.finite import name_rows, non_finite
from lrft.training.step import StepBatches


def first_non_finite(run: Run, batches: StepBatches, objective: Objective, loss: float, norm: float) -> str:
    """Run the step once more with hooks and say which module first gave a non-finite output, and for which rows."""
    gradients = {i.name: i.param.grad for i in run.parameters if i.param.grad is not None}
    lost = non_finite(gradients)
    where = f"in the backward pass only, in the gradient of {_named(lost[0], gradients)}" if lost else ""
    for info in run.parameters:
        info.param.grad = None
    head = f"step {run.step + 1}: loss {loss}, gradient norm {norm}; the weights were not touched"
    rows = name_rows(run, sorted(set(run.rows)))
    weights = {info.name: info.param for info in run.parameters}
    if bad := non_finite(weights):
        return (
            f"{head}. {_named(bad[0], weights)} itself holds non-finite numbers since step {run.step}; go back to an "
            f"earlier checkpoint with --resume and a lower optimizer.lr (training rows of this step: {rows})."
        )
    if kept := _keep(run, batches):
        head = f"{head} (the batch is in {kept})"
    if found := _first_module(run, batches, objective):
        where = f"first in the output of {found}"
    where = where or "in the backward pass only"
    return f"{head}. It appears {where}, with training rows {rows}; a lower optimizer.lr or float32 may help."


def _named(name: str, tensors: Mapping[str, Tensor]) -> str:
    return f"{name} ({str(tensors[name].dtype).removeprefix('torch.')})"


def _keep(run: Run, batches: StepBatches) -> Path | None:
    """Write this process's micro-batches beside the run, to be looked at; the path, or None without a folder."""
    if run.folder is None:
        return None
    path = run.folder / f"non-finite-step-{run.step + 1}-process-{run.rank}.safetensors"
    tensors = {
        f"{index}.{name}": getattr(batch, name).cpu().contiguous()
        for index, batch in enumerate(batches.micro_batches)
        for name in ("input_ids", "position_ids", "supervised", "targets")
    }
    try:
        write_file(path, save(tensors))
    except WriteError:
        return None  # a full disk must not hide what went wrong
    return path


def _first_module(run: Run, batches: StepBatches, objective: Objective) -> str:
    world = 1 if run.accelerator is None else run.accelerator.num_processes
    with first_module(run.model) as seen, torch.no_grad():
        for index, batch in enumerate(batches.micro_batches):
            run.seed_draws(index * world + run.rank)
            with computing(batch, run.seed_of_draws(index * world + run.rank)):
                objective(run.model, batch.to(run.device), run)
    return seen[0] if seen else ""


@contextmanager
def first_module(model: nn.Module) -> Iterator[list[str]]:
    """Within it a list that holds, once there was one, the first module whose output was not finite."""
    seen: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            first = output[0] if isinstance(output, tuple) and output else output
            if not seen and isinstance(first, Tensor) and not bool(torch.isfinite(first).all()):
                seen.append(f"{name} ({type(module).__name__}, {str(first.dtype).removeprefix('torch.')})")

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
