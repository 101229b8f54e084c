"""`posterior/` of a run folder: the curvature of every factor, written once, and believed only as it was written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from lrft.core.plain import plain
from lrft.evaluation.pairs import Pair
from lrft.evaluation.posterior import Posterior, Tried
from lrft.files.fresh_folder import fresh_folder
from lrft.files.json import read_object
from lrft.files.made_records import PosteriorRecord
from lrft.files.read import read_bytes
from lrft.files.sums import MANIFEST, folder_fault, folder_manifest, is_covered
from lrft.model.finite_file import finite_file
from lrft.ops.kfac import Factor
from lrft.ops.laplace import Block
from lrft.registry.errors import DamagedFile, UsageError
from lrft.registry.json import Json

FOLDER, RECORD, FACTORS = "posterior", "posterior.json", "factors.safetensors"
FORMAT = 1
MOST = 2**40  # bytes of the factors
PARTS = ("left.vectors", "left.values", "right.vectors", "right.values")


def write_posterior(run: Path, posterior: Posterior, about: Mapping[str, Json]) -> Path:
    """Write the folder, in the place of one that is there; its path.

    Raises:
        NumericalError: a number is not finite.
        WriteError: the disk is full or not writable; what was there is intact.
    """
    tensors: dict[str, Tensor] = {}
    for name, block in posterior.blocks.items():
        found = (*block.left, *block.right)
        tensors |= {
            f"{name}.{part}": one.float().cpu().contiguous() for part, one in zip(PARTS, found, strict=True)
        }
    record = {
        "format": FORMAT,
        **about,
        "temperature": posterior.chosen.temperature,
        "prior_precision": posterior.chosen.prior_precision,
        "log_evidence": posterior.chosen.log_evidence,
        "log_likelihood": posterior.chosen.log_likelihood,
        "tried": [asdict(one) for one in posterior.tried],
        "rows": posterior.rows,
        "parameters": posterior.parameters,
        "factors": list(posterior.blocks),
    }
    content = finite_file(tensors, "measure it at a temperature nearer to 1")
    path = run / FOLDER
    with fresh_folder(path, existing="replace") as fresh:
        fresh.write(FACTORS, content)
        fresh.write(RECORD, json.dumps(plain(record), indent=2, allow_nan=False) + "\n")
        fresh.write(MANIFEST, folder_manifest(fresh.path))
    return path


def read_record(run: Path) -> dict[str, Any]:
    """What posterior.json says, once everything in the folder is what was written.

    Raises:
        UsageError: the run has no posterior.
        DamagedFile: something there is another by now.
    """
    path = run / FOLDER
    remedy = f"write lrft posterior {run} to measure it again"
    if not path.is_dir():
        raise UsageError(f"--posterior: {run} has none; write lrft posterior {run}")
    problem = folder_fault(path) if is_covered(path) else f"has no {MANIFEST}"
    if problem:
        raise DamagedFile(path, problem, remedy)
    found = read_object(path / RECORD, PosteriorRecord, within=path)
    if found["format"] != FORMAT:
        raise DamagedFile(
            path / RECORD, f"is of another version (format {found['format']}, not {FORMAT})", remedy
        )
    return found


def read_posterior(run: Path, record: Mapping[str, Any], pairs: Sequence[Pair]) -> Posterior:
    """The posterior, whose factors are those of these sites.

    Raises:
        DamagedFile: it holds no tensors, or others than these.
    """
    path = run / FOLDER / FACTORS
    try:
        tensors = load(read_bytes(path, MOST, path.parent))
    except SafetensorError as error:
        raise DamagedFile(path, f"holds no tensors ({error})") from None
    blocks: dict[str, Block] = {}
    for pair in pairs:
        for factor, weight in (("A", pair.A), ("B", pair.B)):
            name = f"{pair.name}.{factor}"
            found = [tensors[key] for part in PARTS if (key := f"{name}.{part}") in tensors]
            if not _fits(found, weight.shape):
                raise DamagedFile(path, f"holds no curvature of {name}, {tuple(weight.shape)}")
            left, left_values, right, right_values = (one.to(weight.device) for one in found)
            blocks[name] = Block(Factor(left, left_values), Factor(right, right_values))
    chosen = Tried(
        record["temperature"], record["prior_precision"], record["log_evidence"], record["log_likelihood"]
    )
    return Posterior(blocks, chosen, [chosen], record["rows"], record["parameters"])


def _fits(found: Sequence[Tensor], shape: Sequence[int]) -> bool:
    """Whether these are the vectors and values of both sides of a factor, finite numbers all."""
    if len(found) != len(PARTS) or not all(one.isfinite().all() for one in found):
        return False
    sides = zip(shape, (found[0], found[2]), (found[1], found[3]), strict=True)
    return all(values.ndim == 1 and vectors.shape == (size, len(values)) for size, vectors, values in sides)
