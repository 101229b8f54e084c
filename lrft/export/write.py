"""Folders for others on disk: whole, or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from lrft.core import stop
from lrft.files.fresh_folder import fresh_folder
from lrft.files.sums import MANIFEST, folder_manifest
from lrft.files.unchanging import Unchanging
from lrft.model.causal_lm import CausalLM
from lrft.registry.errors import UsageError
from lrft.registry.protocols import Tokenizer


def write_merged(
    dense: CausalLM,
    tokenizer: Tokenizer,
    folder: Path,
    shard_size: str,
    held: Mapping[str, Tensor] | None = None,
) -> None:
    """Fill a fresh folder as transformers has it: shards, config, generation config, tokenizer, chat template.

    Args:
        held: what the shards hold, where that is not the model's own tensors.

    Raises:
        OSError: the disk is full or not writable.
    """
    write_classifier(dense.hf, tokenizer, folder, shard_size, held)


def write_classifier(
    hf: Any,
    tokenizer: Tokenizer,
    folder: Path,
    shard_size: str,
    held: Mapping[str, Tensor] | None = None,
) -> None:
    """The same of a sequence classifier of transformers, which generates nothing.

    Raises:
        OSError: as `write_merged`.
    """
    hf.config._attn_implementation = "sdpa"
    with stop.at_once():
        hf.save_pretrained(folder, max_shard_size=shard_size, state_dict=held)
    tokenizer.save_pretrained(folder)


@contextmanager
def whole_folder(out: Path, needed: int = 0) -> Iterator[Path]:
    """A new folder beside `out`, which takes its place at the end; nothing is left where that is not reached.

    Args:
        needed: bytes, where they are known.

    Raises:
        UsageError: `out` holds something already.
        WriteError: it cannot be written.
    """
    check_free(out)
    with fresh_folder(out.resolve(), name=f"--out {out}", needed=needed) as fresh:
        yield fresh.path
        for path in filter(Path.is_file, fresh.path.iterdir()):
            path.chmod(0o644)  # safetensors writes for the owner alone, which no server could read


def check_free(out: Path) -> None:
    """Refuse to write over something.

    Raises:
        UsageError: the folder is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out}: is not an empty folder; give another one or remove it")


def write_adapter_folder(
    folder: Path,
    files: Mapping[str, bytes],
    tokenizer: Tokenizer,
    then: str = "",
    beside: Unchanging | None = None,
) -> None:
    """Write the adapter folder beside, then put it in the place of the old one: at any moment there is a whole one.

    Args:
        then: what to do after the remedy of a failure.
        beside: knows what an earlier writing of this folder left that is the same now.

    Raises:
        WriteError: the disk is full or not writable; the old folder is intact.
    """
    known = beside or Unchanging()
    with fresh_folder(folder, "replace", needed=sum(map(len, files.values())), then=then) as fresh:
        known.fill(fresh, tokenizer.save_pretrained)
        for name, content in files.items():
            known.write(fresh, name, content)
        fresh.write(MANIFEST, folder_manifest(fresh.path))
    known.keep(folder)
