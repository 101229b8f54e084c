"""A script in several processes that know of each other: gloo on the CPU."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path


def launched(
    *command: str | Path, processes: int = 2, seconds: float = 250
) -> subprocess.CompletedProcess[str]:
    """Run `command`, a script with its arguments, in every process; of the first that fails, else of process 0.

    They are started as torchrun starts them, without its own process, which takes seconds to begin.
    """
    shared = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, *map(str, command)]
    with ExitStack() as stack:
        said = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(processes)]
        started = [
            subprocess.Popen(
                words,
                env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=file,
                stderr=subprocess.STDOUT,
            )
            for rank, file in enumerate(said)
        ]
        stack.callback(lambda: [process.kill() for process in started])
        done = []
        for process, file in zip(started, said, strict=True):
            code = process.wait(seconds)
            file.seek(0)
            done.append(subprocess.CompletedProcess(words, code, stderr=file.read()))
    return next((one for one in done if one.returncode), done[0])


def by_launcher(*words: str | Path, seconds: float = 250) -> subprocess.CompletedProcess[str]:
    """Run a module that starts the processes itself, as torchrun's and accelerate's do; one thread each."""
    return subprocess.run(
        [sys.executable, "-m", *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port
