"""Numbers on their way to the disk: all tensors are looked at together, and the host waits once for what was seen."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from lrft.core.run import Run
from lrft.registry.errors import NumericalError

SHOWN = 8  # rows that a message names
NUMBER = re.compile(r"\d+$")


def non_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors that hold a number which is infinite or none, in their order.

    One reduction a tensor, and one read of every device that holds some.
    """
    held: dict[torch.device, list[str]] = defaultdict(list)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel():
            held[tensor.device].append(name)
    bad: set[str] = set()
    for names in held.values():
        flags = torch.stack([tensors[name].detach().isfinite().all() for name in names]).tolist()
        bad |= {name for name, fine in zip(names, flags, strict=True) if not fine}
    return [name for name in tensors if name in bad]


def fault_of(content: bytes) -> str:
    """What is wrong with the numbers of a safetensors file, or an empty string."""
    try:
        bad = non_finite(load(content))
    except SafetensorError as error:
        return f"is no safetensors file ({error})"
    return f"holds numbers that are not finite, in {bad[0]} first" if bad else ""


def check_saved(run: Run, adapter: Mapping[str, Tensor], state: Mapping[str, Tensor], finite: int) -> None:
    """Refuse to save a step after which a weight, or what an optimizer or a callback keeps, is no finite number.

    Args:
        adapter: the weights by name.
        state: what else the checkpoint would hold.
        finite: the step after which all of them were last seen to be finite; 0 is the start of the run.

    Raises:
        NumericalError: names the first tensor, the steps in which it can have happened, and the rows of the last one.
    """
    bad = non_finite(adapter) or non_finite(state)
    if not bad:
        return
    held = {**state, **adapter}
    first = held[bad[0]]
    count = int((~first.isfinite()).sum())
    what = bad[0] if bad[0] in adapter else _of_parameter(run, first) or bad[0]
    dtype = str(first.dtype).removeprefix("torch.")
    others = f", and {len(bad) - 1} more such tensors" if len(bad) > 1 else ""
    when = f"in step {run.step}" if finite == run.step - 1 else f"in steps {finite + 1} to {run.step}"
    rows = f" with training rows {name_rows(run, run.rows)}" if finite == run.step - 1 else ""
    raise NumericalError(
        f"step {run.step}: {count} of the {first.numel()} numbers of {what} ({dtype}) are not finite{others}; it "
        f"happened {when}{rows}, so this step is not saved and earlier checkpoints are intact; lower optimizer.lr"
    )


def name_rows(run: Run, rows: Sequence[int]) -> str:
    """Where the first of these rows of the data are: `file:line, line` where files have lines, each file once."""
    places: dict[str, list[str]] = {}
    for row in rows[:SHOWN]:
        place = run.where(row)
        number = NUMBER.search(place)
        start = number.start() if number else len(place)
        places.setdefault(place[:start], []).append(place[start:])
    shown = "; ".join(f"{head}{', '.join(numbers)}" for head, numbers in places.items())
    return f"{shown} and {len(rows) - SHOWN} more" if len(rows) > SHOWN else shown


def _of_parameter(run: Run, tensor: Tensor) -> str:
    """Whose state it is, by the name of the parameter: a checkpoint counts the parameters."""
    for info in run.parameters:
        for name, value in run.optimizer.state.get(info.param, {}).items():
            if value is tensor:
                return f"{name} of {info.name}"
    return ""
