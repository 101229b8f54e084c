"""The folder of a model or an adapter that somebody else made: looked at before any library parses what is in it."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

from lrft.registry.errors import RecipeError

MIB = 2**20
# Largest file of each kind, in bytes. The largest tokenizers have 40 MB, the largest indexes of weights 10.
LARGEST = {".json": 64 * MIB, ".jinja": MIB, ".txt": 64 * MIB, ".model": 64 * MIB, ".yaml": MIB}
TOKENIZER, LARGEST_TOKENIZER = "tokenizer.json", 256 * MIB
WEIGHTS, LARGEST_HEADER = (
    ".safetensors",
    32 * MIB,
)  # names and places of tensors; a thousand billion numbers take 5


def check_folder(folder: Path, key: str) -> None:
    """Refuse a folder in which something is no file, or far larger than such a file ever is. A link of a cache is fine.

    Args:
        key: of the recipe, that names the folder.

    Raises:
        RecipeError: names the file.
    """
    for path, why in _faults(folder):
        raise RecipeError(f"{path}: {why}; take the folder from whom you trust", key)


def _faults(folder: Path) -> Iterator[tuple[Path, str]]:
    for path in sorted(folder.iterdir()):
        largest = LARGEST_TOKENIZER if path.name == TOKENIZER else LARGEST.get(path.suffix)
        if largest is None and path.suffix != WEIGHTS:
            continue
        try:
            found = path.stat()
        except OSError as error:
            yield path, f"cannot be read ({error.strerror})"
            continue
        if stat.S_ISDIR(found.st_mode):
            continue
        if not stat.S_ISREG(found.st_mode):
            yield path, "is a pipe or a device, and no file"
        elif largest is not None and found.st_size > largest:
            yield path, f"has {found.st_size:,} bytes, where such a file has at most {largest:,}"
        elif largest is None and (header := _header(path)) > LARGEST_HEADER:
            yield path, f"says that its header has {header:,} bytes; at most {LARGEST_HEADER:,} are read"


def _header(path: Path) -> int:
    """Bytes of the header that a safetensors file says it has."""
    with path.open("rb") as file:
        return int.from_bytes(file.read(8), "little")
