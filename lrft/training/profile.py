"""`Profile`: a few steps of a run recorded with torch.profiler, and a table of where their time went."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from math import prod
from pathlib import Path
from typing import TypedDict, cast

import torch
from torch import Tensor, nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, record_function

from lrft.core.callback import Callback
from lrft.core.frozen import FrozenLinear
from lrft.core.notes import say
from lrft.core.run import Run
from lrft.files.write import fresh_file, write_file
from lrft.registry.errors import UsageError
from lrft.training.profile_parts import DECODE, STEP, Operation, Sizes, seconds_by_part, table

SETTLING, WARMING, RECORDED = 2, 1, 3  # steps: left alone, recorded and thrown away, recorded
NEEDED = SETTLING + WARMING + RECORDED
FOLDER, TRACE, TEXT = "profile", "trace.json", "step.txt"
EMBEDDING = "aten::embedding"


class Profiled(TypedDict):
    """Where the recorded steps went: part of the step -> seconds over all of them."""

    steps: list[int]
    device: str
    seconds: dict[str, float]


class Profile(Callback):
    """Records steps 4 to 6 of a sitting, and changes nothing of the run.

    A step is counted from before the first micro-batch until after the update; what callbacks do after it (scores,
    checkpoints) is left out. On a GPU the times are those of its kernels, and what of a step no kernel ran is the last
    part.

    Args:
        folder: of the run; `profile/trace.json` and `profile/step.txt` are written there.
        left: steps that this sitting has.
        compiled: the model's body is compiled, where decoding cannot be told apart.

    Attributes:
        found: what was found, once the steps are over.

    Raises:
        UsageError: the sitting is too short.
    """

    def __init__(self, folder: Path, left: int, compiled: bool = False) -> None:
        if left < NEEDED:
            raise UsageError(
                f"--profile: records steps {NEEDED - RECORDED + 1} to {NEEDED}, and {left} are left to train; "
                "leave it out or train longer"
            )
        self.folder, self.compiled = folder / FOLDER, compiled
        self.found: Profiled | None = None
        self.steps: list[int] = []
        self._profiler: torch.profiler.profile | None = None
        self._ranges = ExitStack()
        self._names = ExitStack()

    def start(self, run: Run) -> None:
        activities = [ProfilerActivity.CPU]
        if run.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        plan = torch.profiler.schedule(wait=SETTLING, warmup=WARMING, active=RECORDED, repeat=1)
        self._profiler = torch.profiler.profile(activities=activities, schedule=plan, record_shapes=True)
        if not self.compiled:  # a compiled body would be compiled again
            self._names.enter_context(named_decoding(run.model))
        self._profiler.start()

    def before_step(self, run: Run) -> None:
        if self._profiler is not None:
            self._ranges.enter_context(record_function(STEP))

    def after_step(self, run: Run) -> None:
        if self._profiler is None:
            return
        if run.device.type == "cuda":
            torch.cuda.synchronize(run.device)
        self._ranges.close()
        self.steps.append(run.step)
        if len(self.steps) < NEEDED:
            self._profiler.step()
            return
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        self._names.close()
        self._write(profiler, run)

    def close(self) -> None:
        self._ranges.close()
        self._names.close()
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None
            say(f"--profile: the run ended after {len(self.steps)} of {NEEDED} steps, so nothing was written")

    def _write(self, profiler: torch.profiler.profile, run: Run) -> None:
        device, steps = run.device.type, self.steps[-RECORDED:]
        events = list(profiler.events() or [])
        whole, operations = read(events, device)
        seconds = seconds_by_part(operations, whole, sizes_of(run, events))
        self.found = {"steps": steps, "device": device, "seconds": seconds}
        then = ", then add --resume; earlier checkpoints are intact"
        write_file(self.folder / TEXT, table(seconds, steps, device), then=then)
        with fresh_file(self.folder / TRACE, then=then) as path:
            profiler.export_chrome_trace(str(path))


def read(events: list[FunctionEvent], device: str) -> tuple[float, list[Operation]]:
    """Seconds of the recorded steps together, and what was called within them.

    Not by who called whom: on a GPU the backward pass runs in a thread of its own.
    """
    own = [event for event in events if event.device_type == torch._C._autograd.DeviceType.CPU]
    steps = [(event.time_range.start, event.time_range.end) for event in own if event.name == STEP]
    found = []
    for event in own:
        if any(start <= event.time_range.start <= end for start, end in steps):
            spent = event.self_cpu_time_total if device == "cpu" else event.self_device_time_total
            found.append(Operation(event.name, tuple(_callers(event)), _shapes(event), spent / 1e6))
    return sum(end - start for start, end in steps) / 1e6, found


def _shapes(event: FunctionEvent) -> tuple[tuple[int, ...], ...]:
    """Of the tensors among its inputs; lists of them, and numbers, are left out."""
    # torch says tuple[int, ...], and gives a list of them.
    given = cast("list[list[object]]", event.input_shapes or [])
    return tuple(tuple(cast("list[int]", s)) for s in given if s and all(isinstance(n, int) for n in s))


def _callers(event: FunctionEvent) -> Iterator[str]:
    caller = event.cpu_parent
    while caller is not None:
        yield caller.name
        caller = caller.cpu_parent


def sizes_of(run: Run, events: list[FunctionEvent]) -> Sizes:
    """What the products of this run are recognised by; the tokens are those that the embedding was given."""
    head = run.model.head.module
    held = {id(module) for module in head.modules()}
    maps = {shape for m in run.model.modules() if id(m) not in held and (shape := _shape(m)) is not None}
    embedded = [_shapes(event)[-1] for event in events if event.name == EMBEDDING]
    matrices = [info.param for info in run.parameters if info.site and info.param.ndim >= 2]
    whole = next(shape for m in head.modules() if (shape := _shape(m)) is not None)
    return Sizes(
        frozenset(maps),
        whole,
        frozenset(min(matrix.shape) for matrix in matrices),
        frozenset(prod(shape) for shape in embedded),
    )


def _shape(module: nn.Module) -> tuple[int, int] | None:
    """(out, in) of a linear map."""
    if isinstance(module, nn.Linear | FrozenLinear):
        return module.out_features, module.in_features
    return None


@contextmanager
def named_decoding(model: nn.Module) -> Iterator[None]:
    """Give the decoding of every stored weight a name that the recording shows."""
    layers = [module for module in model.modules() if isinstance(module, FrozenLinear)]
    for layer in layers:
        layer.__dict__["weight"] = _named(layer.weight)
    try:
        yield
    finally:
        for layer in layers:
            del layer.__dict__["weight"]


def _named(decode: Callable[[], Tensor]) -> Callable[[], Tensor]:
    @wraps(decode)
    def weight() -> Tensor:
        with record_function(DECODE):
            return decode()

    return weight
