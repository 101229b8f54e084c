"""The folder of a generator: what it is fitted to so far, written whole, and believed only as it was written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from lrft.core.generate import Generator, Layout, Sizes
from lrft.core.plain import plain
from lrft.files.fresh_folder import Existing, fresh_folder, recover_folder
from lrft.files.generator_record import GeneratorRecord
from lrft.files.json import read_object
from lrft.files.read import read_bytes
from lrft.files.sums import MANIFEST, folder_fault, folder_manifest, is_covered
from lrft.model.finite_file import finite_file
from lrft.registry.axes import GENERATORS
from lrft.registry.choice import parse_choice
from lrft.registry.errors import DamagedFile, UsageError
from lrft.registry.json import Json, to_section
from lrft.training.fitting import Expected, misfit
from lrft.training.flatten import flatten, unflatten

RECORD, WEIGHTS, OPTIMIZER, STATE = (
    "generator.json",
    "generator.safetensors",
    "optimizer.safetensors",
    "optimizer.json",
)
MEAN, CENTRES, SPREADS = "library.mean", "library.factor_mean", "library.factor_deviation"
OWN = "generator."  # what the names of its own tensors begin with
FORMAT = 1
MOST = 2**40  # bytes of the tensors
SMALLER = "fit it with a smaller lr"


@dataclass(frozen=True)
class Summary:
    """What of the library adapters are compared with.

    Attributes:
        mean: (size,) of all samples of a task, and then of the tasks.
        centres, spreads: (factors,) mean and deviation of the numbers of every factor, over all samples.
    """

    mean: Tensor
    centres: Tensor
    spreads: Tensor


@dataclass(frozen=True)
class Opened:
    """A generator that was read.

    Attributes:
        record: generator.json.
    """

    generator: Generator
    summary: Summary
    record: dict[str, Any]
    path: Path

    @property
    def layout(self) -> Layout:
        """Of the adapters that it draws."""
        return self.generator.sizes.layout

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return bool(self.record["step"] >= self.record["steps"])


def write_generator(
    path: Path,
    generator: Generator,
    summary: Summary,
    record: Mapping[str, Json],
    optimizer: torch.optim.Optimizer | None,
    anew: bool,
) -> None:
    """Write the folder; with an optimizer, what is needed to go on.

    Args:
        anew: nothing is there yet, and what another process has written meanwhile stays; else it is replaced.

    Raises:
        NumericalError: a number is not finite; what was there is intact.
        WriteError: the disk is full or not writable; what was there is intact.
    """
    tensors = {f"{OWN}{name}": one for name, one in generator.state_dict().items()}
    tensors |= {MEAN: summary.mean, CENTRES: summary.centres, SPREADS: summary.spreads}
    files = {WEIGHTS: finite_file(tensors, SMALLER)}
    if optimizer is not None:
        state, values = flatten(optimizer.state_dict())
        files[OPTIMIZER] = finite_file(state, SMALLER)
        files[STATE] = json.dumps(values).encode()
    files[RECORD] = (
        json.dumps(plain({"format": FORMAT, **record}), indent=2, allow_nan=False) + "\n"
    ).encode()
    then = "; the same command goes on"
    existing: Existing = "refuse" if anew else "replace"
    needed = sum(map(len, files.values()))
    with fresh_folder(path, existing, f"--out {path}", needed, then) as fresh:
        for name, content in files.items():
            fresh.write(name, content)
        fresh.write(MANIFEST, folder_manifest(fresh.path))


def read_generator(folder: Path | str) -> Opened:
    """The generator in a folder, finished or not.

    Raises:
        UsageError: there is none.
        DamagedFile: something there is another by now.
    """
    path = Path(folder)
    recover_folder(path)
    if not (path / RECORD).is_file():
        raise UsageError(f"{folder}: holds no generator (no {RECORD}); lrft generate-adapter fit writes one")
    if problem := folder_fault(path) if is_covered(path) else f"has no {MANIFEST}":
        raise DamagedFile(path, problem, "fit it again")
    record = read_object(path / RECORD, GeneratorRecord, within=path)
    if record["format"] != FORMAT:
        raise DamagedFile(path / RECORD, f"is of another version (format {record['format']}, not {FORMAT})")
    tensors = _tensors(path / WEIGHTS)
    generator, summary = _made_of(record, tensors, path)
    return Opened(generator, summary, record, path)


def resume_optimizer(folder: Path, optimizer: torch.optim.Optimizer, generator: Generator) -> None:
    """Give an optimizer of a generator the state that it had when the folder was written.

    Raises:
        DamagedFile: the folder holds none, or that of another one.
    """
    tensors, values = _tensors(folder / OPTIMIZER), read_object(folder / STATE, within=folder)
    try:
        if why := misfit(tensors, values, _expected(generator), begun_whole=True):
            raise ValueError(why)
        own = flatten(optimizer.state_dict())[1]  # settings are the method's, and rates are set at every step
        groups = {"param_groups": to_section(own)["param_groups"]}
        optimizer.load_state_dict(unflatten(tensors, {**values, **groups}))
    except (RuntimeError, KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        what = f"is no state of the generator's optimizer ({type(error).__name__}: {error})"
        raise DamagedFile(folder / STATE, what, "fit it again") from error


def _expected(generator: Generator) -> Expected:
    """What the optimizer keeps after a step, known from one on tensors without storage."""
    hollow = deepcopy(generator).to("meta")
    optimizer = hollow.optimizer()
    for param in hollow.parameters():
        param.grad = torch.empty_like(param)
    optimizer.step()
    return Expected(*flatten(optimizer.state_dict()))


def made(config: Any, sizes: Sizes, seed: int) -> Generator:
    """A generator before its first step; torch's own generators are left as they are."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        found: Generator = GENERATORS.get(config.method)(config, sizes)
    return found


def _shape(tensors: Mapping[str, Tensor], name: str) -> torch.Size | None:
    return tensors[name].shape if name in tensors else None


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load(read_bytes(path, MOST, path.parent))
    except SafetensorError as error:
        raise DamagedFile(path, f"holds no tensors ({error})") from None


def _made_of(
    record: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path
) -> tuple[Generator, Summary]:
    """What the tensors are, as the record has it.

    Raises:
        DamagedFile: they are others, or the record is of nothing that there is.
    """
    layout = Layout({name: (shape[0], shape[1]) for name, shape in record["shapes"].items()})
    sizes = Sizes(layout, tuple(record["condition"]), len(record["tasks"]))
    own = {key.removeprefix(OWN): one for key, one in tensors.items() if key.startswith(OWN)}
    try:
        config = parse_choice(GENERATORS, record["generator"])
        with torch.device("meta"):  # no memory for what a record says, before the file is known to hold it
            hollow = made(config, sizes, record["seed"]).state_dict()
        if odd := [key for key in {**own, **hollow} if _shape(own, key) != _shape(hollow, key)]:
            raise KeyError(odd[0])
        generator = made(config, sizes, record["seed"])
        generator.load_state_dict(own)
        summary = Summary(tensors[MEAN], tensors[CENTRES], tensors[SPREADS])
    except (RuntimeError, KeyError, ValueError, TypeError, UsageError) as error:
        raise DamagedFile(path / WEIGHTS, f"is not what {RECORD} says", "fit it again") from error
    factors = (len(layout.shapes),)
    fits = summary.mean.shape == (layout.size,) and summary.centres.shape == summary.spreads.shape == factors
    if not fits or not all(one.isfinite().all() for one in tensors.values()):
        raise DamagedFile(path / WEIGHTS, "holds numbers that no fit leaves", "fit it again")
    return generator, summary
