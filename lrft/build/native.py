"""Builds the kernels of `lrft/ops/kernels` on the machine they run on, once."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from lrft.build.adaptation import Adaptation
from lrft.files.write import fresh_file
from lrft.model.gguf import cache_root
from lrft.ops.native import SOURCES, Kernels
from lrft.registry.errors import LrftError

FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fopenmp", "-shared", "-fPIC")
# Named, since a compiler of C by its name, as in `CXX=gcc`, compiles C++ and leaves these out.
LINKED = ("-lc++",) if sys.platform == "darwin" else ("-lstdc++", "-lm")
COMPILERS = ("c++", "g++", "clang++")
PATIENCE = 120.0  # seconds for what takes five at most


def kernels_of(adaptation: Adaptation) -> Kernels | None:
    """The kernels of this machine for a model on its CPU.

    Where they cannot be had, for want of a compiler, the run says so in a note and goes on without.
    """
    found = _found(adaptation.model.device)
    if isinstance(found, str):
        adaptation.notes.append(f"attention, norms and gates go by parts, steps take longer ({found})")
    return found if isinstance(found, Kernels) else None


def kernels_here(device: torch.device) -> Kernels | None:
    """The kernels of this machine for a device, if it has any."""
    found = _found(device)
    return found if isinstance(found, Kernels) else None


def _found(device: torch.device) -> Kernels | str | None:
    """The kernels, or why there are none; None for a device that they are not for."""
    return native_kernels(cache_root().parent / "compiled") if device.type == "cpu" else None


@functools.cache
def native_kernels(cache: Path) -> Kernels | str:
    """The kernels, or why there are none.

    Args:
        cache: the folder that keeps what was built.
    """
    try:
        compiler = _compiler()
        sources = sorted(SOURCES.glob("*.cpp"))
        key = _key(compiler)
        libraries = [cache / f"{source.stem}-{key}.so" for source in sources]
        missing = [pair for pair in zip(sources, libraries, strict=True) if not _ours(pair[1])]
        _build(compiler, missing)
        try:
            return Kernels(libraries)
        except OSError:  # damaged on the disk
            _build(compiler, list(zip(sources, libraries, strict=True)))
            return Kernels(libraries)
    except (OSError, ValueError, LrftError) as error:  # a ValueError of what CXX says
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def has_compiler() -> bool:
    """Whether the kernels can be expected here."""
    try:
        return shutil.which(_compiler()[0]) is not None
    except (OSError, ValueError):
        return False


def _build(compiler: Sequence[str], wanted: Sequence[tuple[Path, Path]]) -> None:
    """Compile sources to libraries, each by a process of its own."""

    def build(source: Path, library: Path) -> None:
        with fresh_file(library) as scratch:
            _run([*compiler, *FLAGS, str(source), "-o", str(scratch), *LINKED])

    with ThreadPoolExecutor(max(1, len(wanted))) as pool:
        for done in [pool.submit(build, *pair) for pair in wanted]:
            done.result()


def _compiler() -> list[str]:
    """`CXX`, or a compiler by one of the usual names.

    Raises:
        OSError: there is none.
    """
    if given := shlex.split(os.environ.get("CXX", "")):
        return given
    for name in COMPILERS:
        if shutil.which(name):
            return [name]
    raise OSError(f"there is no C++ compiler, by the name of {', '.join(COMPILERS)} or in CXX")


def _key(compiler: Sequence[str]) -> str:
    """What the libraries follow from: the sources, the compiler, the flags, the processor."""
    parts = [path.read_bytes() for path in sorted(SOURCES.iterdir())]
    parts += [repr([*compiler, *FLAGS, *LINKED]).encode(), _run([*compiler, "--version"]).encode()]
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
        parts += sorted({line for line in lines if line.startswith((b"flags", b"Features", b"model name"))})
    except OSError:  # another system than Linux
        parts.append(platform.processor().encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _ours(built: Path) -> bool:
    """Whether a library is there, and nobody else could have written it: what is loaded runs."""
    try:
        found = os.lstat(built)
    except (OSError, ValueError):
        return False
    owned = not hasattr(os, "getuid") or found.st_uid == os.getuid()
    return stat.S_ISREG(found.st_mode) and owned and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _run(command: Sequence[str]) -> str:
    """What a command printed.

    Raises:
        OSError: it cannot be started, took too long, or failed.
    """
    try:
        done = subprocess.run(
            list(command), capture_output=True, text=True, errors="replace", timeout=PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        raise OSError(f"{command[0]} took longer than {PATIENCE:.0f} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        raise OSError(f"{command[0]}: {lines[0]}")
    return done.stdout
