"""A disk that fails at its k-th operation: calls of Python, its files, and the writers of libraries."""

from __future__ import annotations

import builtins
import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class FaultyDisk:
    """Operations below `root` are counted from 1, and the one numbered `at` fails; nothing else is touched.

    Args:
        at: which; None for a disk that is whole, and only counted.
        number: the errno.
        libraries: the writers of safetensors and transformers fail too.
        stays: every operation after it fails too, as on a disk that is full; else that one alone.

    Attributes:
        done: what was asked of the disk, in order.
        failed: whether anything did.
    """

    def __init__(
        self,
        root: Path,
        at: int | None = None,
        number: int = errno.ENOSPC,
        stays: bool = False,
        libraries: bool = False,
    ) -> None:
        self.libraries = libraries
        self.root, self.at, self.number, self.stays = root.resolve(), at, number, stays
        self.done: list[str] = []
        self.failed = False

    @contextmanager
    def at_work(self) -> Iterator[FaultyDisk]:
        """Everything inside meets this disk."""
        from lrft.files import fresh_folder

        paths = {name: getattr(os, name) for name in ("replace", "rename", "link", "mkdir", "utime")}
        patches = [patch.object(os, name, self._by_path(name, real)) for name, real in paths.items()]
        patches += [
            patch.object(os, name, self._by_descriptor(name, getattr(os, name)))
            for name in ("write", "fsync", "posix_fallocate")
        ]
        patches += [
            patch.object(os, "open", self._os_open(os.open)),
            patch.object(builtins, "open", self._open(io.open)),
            patch.object(io, "open", self._open(io.open)),
            patch.object(fresh_folder, "_exchange", self._exchange(fresh_folder._exchange)),
            *(self._writers() if self.libraries else ()),
        ]
        for one in patches:
            one.start()
        try:
            yield self
        finally:
            for one in reversed(patches):
                one.stop()

    def _writers(self) -> Iterator[Any]:
        import safetensors.torch
        from transformers import PreTrainedTokenizerBase as Base

        real = safetensors.torch.serialize_file
        yield patch.object(safetensors.torch, "serialize_file", self._tensors(real))
        yield patch.object(Base, "save_pretrained", self._tokenizer(Base.save_pretrained))

    def _fails(self, what: str, path: Any) -> bool:
        """Count an operation; whether it is to fail."""
        full = os.path.abspath(os.fsdecode(path))
        place = os.path.realpath(os.path.dirname(full))
        if full != str(self.root) and not f"{place}/".startswith(f"{self.root}/"):
            return False
        self.done.append(f"{what} {os.path.relpath(full, self.root)}")
        now = self.at is not None and (len(self.done) == self.at or (self.stays and len(self.done) > self.at))
        self.failed |= now
        return now

    def _error(self, *names: Any) -> OSError:
        return OSError(self.number, os.strerror(self.number), *names)

    def _by_path(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *arguments: Any, **settings: Any) -> Any:
            if not (name == "mkdir" and os.path.isdir(path)) and self._fails(name, path):
                raise self._error(path)
            return real(path, *arguments, **settings)

        return call

    def _by_descriptor(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(descriptor: int, *arguments: Any) -> Any:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            if path.startswith("/") and self._fails(name, path.removesuffix(" (deleted)")):
                if name == "write":  # a full disk takes what still fits
                    real(descriptor, arguments[0][: len(arguments[0]) // 2])
                raise self._error()
            return real(descriptor, *arguments)

        return call

    def _os_open(self, real: Callable[..., int]) -> Callable[..., int]:
        def call(path: Any, flags: int, *arguments: Any, **settings: Any) -> int:
            if flags & WRITING and not settings.get("dir_fd") and self._fails("open", path):
                raise self._error(path)
            return real(path, flags, *arguments, **settings)

        return call

    def _open(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """A file of Python's own, which fails when it is opened or when it is written to."""

        def call(file: Any, mode: str = "r", *arguments: Any, **settings: Any) -> Any:
            if isinstance(file, int) or not set(mode) & set("wax+"):
                return real(file, mode, *arguments, **settings)
            if self._fails("open", file):
                raise self._error(file)
            if not self._fails("fill", file):
                return real(file, mode, *arguments, **settings)
            raw = io.BufferedWriter(_Full(file, mode.replace("b", "").replace("t", ""), self._error()))
            return raw if "b" in mode else io.TextIOWrapper(raw, encoding="utf-8")

        return call

    def _tensors(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def serialize_file(tensors: Any, filename: Any, *arguments: Any, **settings: Any) -> Any:
            from safetensors import SafetensorError

            if self._fails("serialize", filename):
                Path(filename).write_bytes(b"half")
                why = f"{os.strerror(self.number)} (os error {self.number})"
                raise SafetensorError(f"Error while serializing: I/O error: {why}")
            return real(tensors, filename, *arguments, **settings)

        return serialize_file

    def _tokenizer(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def save_pretrained(tokenizer: Any, folder: Any, *arguments: Any, **settings: Any) -> Any:
            if self._fails("tokenizer", Path(folder) / "tokenizer.json"):
                raise Exception(f"{os.strerror(self.number)} (os error {self.number})")  # what Rust raises
            return real(tokenizer, folder, *arguments, **settings)

        return save_pretrained

    def _exchange(self, real: Callable[[Path, Path], bool]) -> Callable[[Path, Path], bool]:
        """A file system that refuses this says so in its answer, and is then asked for two renames."""
        return lambda a, b: False if self._fails("exchange", b) else real(a, b)


class _Full(io.FileIO):
    """A file that takes nothing."""

    def __init__(self, file: Any, mode: str, error: OSError):
        super().__init__(file, mode)
        self.error = error

    def write(self, data: Any) -> int:
        raise self.error
