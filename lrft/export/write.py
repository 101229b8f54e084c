"""Folders for others on disk: whole, or not at all."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from lrft.core import stop
from lrft.core.swap import replace_folder
from lrft.model.causal_lm import CausalLM
from lrft.registry.errors import Interrupted, LrftError, UsageError
from lrft.registry.protocols import Tokenizer


def write_merged(dense: CausalLM, tokenizer: Tokenizer, out: Path, shard_size: str) -> None:
    """Write `dense` as a plain transformers folder: shards, config, generation config, tokenizer, chat template.

    Raises:
        UsageError: `out` holds something already.
        LrftError: no room, or not writable; nothing is left behind.
    """
    with whole_folder(out) as scratch:
        _write(dense, tokenizer, scratch, shard_size)


def write_classifier(made: nn.Module, tokenizer: Tokenizer, out: Path, shard_size: str) -> None:
    """The same of a sequence classifier of transformers, which generates nothing.

    Raises:
        UsageError, LrftError: as `write_merged`.
    """
    with whole_folder(out) as scratch:
        _save(made, tokenizer, scratch, shard_size)


@contextmanager
def undone_by_a_stop(out: Path, again: str) -> Iterator[None]:
    """What was written at `out` goes where somebody stops before it is found good: the same command writes it again.

    Args:
        again: what that does, in the message.
    """
    empty = out.is_dir()
    try:
        with stop.listening(f"{out} is as it was; the same command {again} from the start"):
            yield
    except (stop.Stopped, Interrupted):
        shutil.rmtree(out, ignore_errors=True)
        if empty:
            out.mkdir()
        raise


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A new folder beside `out`, which takes its place at the end; nothing is left where that is not reached.

    Raises:
        UsageError: `out` holds something already.
        LrftError: it cannot be written.
    """
    check_free(out)
    final = out.resolve()
    scratch = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir(parents=True)
        yield scratch
        for path in filter(Path.is_file, scratch.iterdir()):
            path.chmod(0o644)  # safetensors writes for the owner alone, which no server could read
        with stop.held():
            if final.exists():
                final.rmdir()
            scratch.rename(final)
    except OSError as error:
        raise LrftError(f"--out {out}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write(dense: CausalLM, tokenizer: Tokenizer, scratch: Path, shard_size: str) -> None:
    _save(dense.hf, tokenizer, scratch, shard_size)


def _save(hf: Any, tokenizer: Tokenizer, scratch: Path, shard_size: str) -> None:
    needed = sum(p.numel() * p.element_size() for p in hf.parameters())
    if (free := shutil.disk_usage(scratch).free) < needed:
        raise OSError(errno.ENOSPC, f"{needed} bytes are needed, {free} are free")
    hf.config._attn_implementation = "sdpa"
    with stop.at_once():
        hf.save_pretrained(scratch, max_shard_size=shard_size)
    tokenizer.save_pretrained(scratch)


def check_free(out: Path) -> None:
    """Refuse to write over something.

    Raises:
        UsageError: the folder is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out}: is not an empty folder; give another one or remove it")


def write_adapter_folder(folder: Path, files: Mapping[str, bytes], tokenizer: Tokenizer) -> None:
    """Write the adapter folder beside, then put it in the place of the old one: at any moment there is a whole one.

    Raises:
        OSError: the disk is full or not writable; the old folder is intact.
    """
    scratch = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    for name, content in files.items():
        (scratch / name).write_bytes(content)
    tokenizer.save_pretrained(scratch)
    replace_folder(scratch, folder)
