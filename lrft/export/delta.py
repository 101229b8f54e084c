"""What fine-tuning added to every weight of a model, as a folder: differences, and the tokenizer beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypedDict, cast

import torch
from torch import Tensor

from lrft.core import stop
from lrft.export.mixed_bits import Vectors
from lrft.export.rounding import check_finite
from lrft.files.json import read_object
from lrft.files.made_records import DeltaRecord
from lrft.files.sums import MANIFEST, Sum, difference, file_sum, folder_fault, folder_manifest
from lrft.files.tensors import check_tensor_file
from lrft.files.tensors_written import Gathered
from lrft.files.write import make_folder, write_in
from lrft.model.causal_lm import CausalLM
from lrft.model.layout import write_tensor
from lrft.registry.errors import DamagedFile, UsageError
from lrft.registry.protocols import Tokenizer

TENSORS, RECORD, TOKENIZER = "delta.safetensors", "delta.json", "tokenizer"


class Delta(TypedDict, total=False):
    """What delta.json holds.

    Attributes:
        shapes: of every parameter of the tuned model, those that did not change too.
        vocabulary: sum of the base's tokens and their numbers.
        layers: of a compressed one, parameter -> its groups as (bits, columns); the others are there as they were.
    """

    base: str
    tuned: str
    base_fingerprint: str
    dtype: str
    shapes: dict[str, list[int]]
    rows: int
    vocabulary: str
    changed: int
    relative_change: float
    layers: dict[str, list[list[int]]]
    errors: dict[str, float]
    relative_error: float
    ratio: float
    bytes: int
    bytes_in_16_bits: int
    calibration_rows: int
    kl_mean: float
    loss_difference: float
    told: list[str]
    files: dict[str, Sum]


@torch.no_grad()
def subtract(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Of every parameter its name, the tuned less the base in float64, given in float32, and the base's own.

    Rows of tokens that the base has not are the tuned ones. One parameter of each is asked for at a time, so that
    mappings which read from files hold no more than that.

    Raises:
        UsageError: the models have not the same parameters.
    """
    if odd := sorted({*base} ^ {*tuned}):
        raise UsageError(f"{odd[0]}: one model has it and the other not; give two of one architecture")
    for name in tuned:
        stop.poll()
        after, before = tuned[name], base[name]
        check_finite(name, after)
        yield name, (after.double() - _padded(name, before, after).double()).float(), before


@torch.no_grad()
def add(model: CausalLM, deltas: Mapping[str, Tensor], weight: float = 1.0) -> None:
    """Add `weight` times the differences to the parameters, in place, summed in float64."""
    for name, parameter in model.hf.named_parameters():
        stop.poll()
        if name in deltas:
            parameter.copy_(summed(parameter, deltas[name], weight))


def summed(own: Tensor, delta: Tensor, weight: float = 1.0) -> Tensor:
    """A parameter with `weight` times its difference, in float64."""
    return own.double() + weight * delta.to(own.device).double()


def grow(model: CausalLM, rows: int) -> None:
    """Give the vocabulary so many rows, the new ones 0: what is added to them is then all that they are."""
    embedding = model.hf.get_input_embeddings()
    if (before := embedding.num_embeddings) == rows:
        return
    model.hf.resize_token_embeddings(rows, mean_resizing=False)
    model.hf.requires_grad_(False)
    for module in (model.hf.get_input_embeddings(), model.hf.get_output_embeddings()):
        for parameter in () if module is None else module.parameters():
            parameter.data[before:] = 0


def write_delta(
    gathered: Gathered,
    record: Delta,
    tokenizer: Tokenizer,
    generation: str,
    held: Mapping[str, Tensor],
    kept: Sequence[str],
) -> Delta:
    """Fill a fresh folder, one tensor in memory at a time; returns the record with the sums of what is in it.

    Args:
        gathered: in the folder, with what was made.
        held, kept: names of what else is there, read from `held` as it is written, in float32.

    Raises:
        OSError: the disk is full or not writable.
    """
    place = gathered.file.parent
    others = {name: ("F32", tuple(record["shapes"][name])) for name in kept}
    for name, where in gathered.write(others).items():
        stop.poll()
        write_tensor(where, held[name])
    make_folder(place / TOKENIZER)
    tokenizer.save_pretrained(place / TOKENIZER)
    write_in(place / TOKENIZER / "generation_config.json", generation)
    return {**record, "files": {TENSORS: file_sum(place / TENSORS)}}


def seal(place: Path, record: str) -> None:
    """Write the record, and the sums of everything in the folder, the tokenizer too."""
    write_in(place / RECORD, record)
    write_in(place / MANIFEST, folder_manifest(place))


def read_record(folder: Path) -> Delta:
    """What a folder says of itself, once everything in it is known to be what was written.

    One without a manifest was made by an older lrft; of that the tensors alone are known.

    Raises:
        UsageError: it is no folder of differences.
        DamagedFile: it is damaged.
    """
    if not (folder / RECORD).is_file():
        raise UsageError(f"{folder}: holds no {RECORD}; `lrft delta diff BASE TUNED --out DIR` writes one")
    if problem := folder_fault(folder):
        raise DamagedFile(folder, problem, "restore it from a copy, or write it again")
    found = cast("Delta", read_object(folder / RECORD, DeltaRecord, within=folder))
    if TENSORS not in found["files"]:
        raise DamagedFile(folder / RECORD, f"says nothing of {TENSORS}")
    if not any(shape[:1] == [found["rows"]] for shape in found["shapes"].values()):
        raise DamagedFile(folder / RECORD, f"says {found['rows']:,} rows, which none of its shapes has")
    for name, groups in found.get("layers", {}).items():
        if len(found["shapes"].get(name, ())) != 2 or any(len(group) != 2 for group in groups):
            raise DamagedFile(folder / RECORD, f"says nothing of {name} that a matrix in few bits would have")
    check_tensor_file(folder / TENSORS, folder)
    if why := difference(folder / TENSORS, found["files"][TENSORS], folder):
        raise DamagedFile(folder / TENSORS, why)
    return found


def held_of(name: str, groups: list[Vectors]) -> dict[str, Tensor]:
    """The names and tensors of a compressed layer in the file."""
    return {
        f"{name}::{number}.{key}": tensor
        for number, one in enumerate(groups)
        for key, tensor in one.held().items()
    }


def _padded(name: str, before: Tensor, after: Tensor) -> Tensor:
    """The base's tensor with rows of zeros for tokens that the tuned model has more.

    Raises:
        UsageError: the shapes differ otherwise.
    """
    if before.shape == after.shape:
        return before
    if before.shape[1:] != after.shape[1:] or before.shape[0] > after.shape[0] or before.ndim != 2:
        raise UsageError(
            f"{name}: is {tuple(before.shape)} in the base and {tuple(after.shape)} in the other; give two models of "
            "one shape"
        )
    more = before.new_zeros(after.shape[0] - before.shape[0], before.shape[1])
    return torch.cat([before, more])
