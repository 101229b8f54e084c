"""The files of a model or an adapter that somebody else wrote, looked at before a library opens them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lrft.files.json import read_object
from lrft.files.made_records import AdapterConfig, FidelityRecord
from lrft.files.read import leads_out, open_regular
from lrft.files.records import Index
from lrft.files.sums import difference, folder_fault
from lrft.files.tensors import check_tensor_file
from lrft.registry.errors import DamagedFile, MissingFile

# Ending -> bytes that such a file may have; what is not here, libraries do not read into memory. The largest tokenizers
# have 40 MB, the largest indexes of weights 10.
MIB = 2**20
MOST = {
    ".json": 64 * MIB,
    ".jinja": MIB,
    ".model": 64 * MIB,
    ".txt": 64 * MIB,
    ".jsonl": 64 * MIB,
    ".yaml": MIB,
}
TOKENIZER, LARGEST_TOKENIZER = "tokenizer.json", 256 * MIB
CONFIG = 16 * MIB
INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG, ADAPTER = "adapter_config.json", "adapter_model.safetensors"
CERTIFICATE = "fidelity.json"
SMALL = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    ADAPTER_CONFIG,
)
# What libraries read as if it were not there where it is torn.
OBJECTS = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")


def check_model_folder(folder: Path) -> None:
    """Refuse devices, pipes, links that lead out, records of absurd size, torn settings, and torn tensor files.

    Links of the hub's cache, from a snapshot into the blobs of the same model, are what they should be.

    Raises:
        DamagedFile: names the first file that something is wrong with.
    """
    root = _root(folder)
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise DamagedFile(folder, f"cannot be read ({error.strerror or error})") from None
    for path in paths:
        if path.suffix == ".safetensors":
            check_tensor_file(path, root)
        elif path.suffix in MOST:
            most = CONFIG if path.name in SMALL else MOST[path.suffix]
            most = LARGEST_TOKENIZER if path.name == TOKENIZER else most
            if path.name in OBJECTS:
                read_object(path, most=most, within=root)
            else:
                open_regular(path, most, root).close()
    if (folder / INDEX).exists():
        _check_index(folder, root)


def _check_index(folder: Path, root: Path) -> None:
    """Every shard that the index names is a file of the folder."""
    names = set(read_object(folder / INDEX, Index, MOST[".json"], root)["weight_map"].values())
    for name in sorted(names):
        if leads_out(folder / name, root):
            raise DamagedFile(
                folder / INDEX, f"names {name!r}, which is no file of the folder", "name the folder of it"
            )


def _root(folder: Path) -> Path:
    """The folder that links may lead to: of a snapshot in the hub's cache all that is kept of the model."""
    absolute = folder.absolute()
    return absolute.parents[1] if absolute.parent.name == "snapshots" else folder


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json of a folder in PEFT's form, whose files are what its manifest says, or its certificate.

    Raises:
        MissingFile: there is none.
        DamagedFile: it is no such record, or a file of the folder is not what was written.
    """
    check_model_folder(folder)
    if problem := folder_fault(folder):
        raise DamagedFile(folder, problem, "restore it from a copy, or name the run that wrote it")
    if problem := _exported_fault(folder):
        raise DamagedFile(
            folder, problem, f"restore it from a copy, or remove {CERTIFICATE} to have it believed as it is"
        )
    return read_object(folder / ADAPTER_CONFIG, AdapterConfig, CONFIG, _root(folder))


def _exported_fault(folder: Path) -> str:
    """What is wrong with the files that are read of a folder that was exported with their sums, or an empty string."""
    try:
        known = read_object(folder / CERTIFICATE, FidelityRecord, within=folder).get("files", {})
        for name, entry in known.items():
            if name in (ADAPTER_CONFIG, ADAPTER) and (why := difference(folder / name, entry, folder)):
                return f"{name} {why}"
    except MissingFile:
        return ""
    except DamagedFile as error:
        return f"{Path(error.file).name} {error.problem}"
    return ""
