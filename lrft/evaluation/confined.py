"""Running a program that a model wrote: a process of its own, with little time, memory and files, and no network.

This keeps mistakes from doing harm. It is no prison: a program that means harm can read, and in small pieces write,
what the user can.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# Namespaces of its own: no network but a loopback that leads nowhere, and no process outlives the first one.
UNSHARE = ("unshare", "--map-root-user", "--net", "--pid", "--fork", "--kill-child")
FILE_BYTES, OPEN_FILES, PROCESSES = 2**20, 64, 64
SAID = 2_000  # bytes of what a program printed that are kept, and of its error
# Limits are set by the process itself, before the program is read; the word at the end says that it came to its end.
RUNNER = """
import os, resource, sys
file, word, seconds, memory, size, files, processes = sys.argv[1:]
limits = {"CPU": seconds, "AS": memory, "FSIZE": size, "NOFILE": files, "NPROC": processes, "CORE": 0}
for name, most in limits.items():
    limit = getattr(resource, "RLIMIT_" + name)
    _, hard = resource.getrlimit(limit)
    most = int(most) if hard == resource.RLIM_INFINITY else min(int(most), hard)
    resource.setrlimit(limit, (most, most))
sys.argv[1:] = []
with open(file, encoding="utf-8") as text:
    program = text.read()
del name, most, limit, limits
exec(compile(program, "program.py", "exec"), {"__name__": "__main__"})
sys.stdout.flush()
os.write(1, word.encode())
"""


@dataclass(frozen=True)
class Limits:
    """What a program may take.

    Attributes:
        seconds: of the clock, and of processor time.
        memory: bytes of addresses.
    """

    seconds: float
    memory: int


@cache
def cuts_network() -> bool:
    """Whether programs here run in namespaces of their own, without a network."""
    if shutil.which(UNSHARE[0]) is None:
        return False
    try:
        done = subprocess.run(
            [*UNSHARE, sys.executable, "-I", "-c", ""], capture_output=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


@dataclass(frozen=True)
class Ran:
    """What came of a program.

    Attributes:
        ended: it ran to its end, without an error, an exit on the way, or too much of anything.
        printed: the beginning of what it printed.
        error: the last line of its error; empty where it told none.
    """

    ended: bool
    printed: str
    error: str = ""


def passes(program: str, limits: Limits) -> bool:
    """Whether the program runs to its end, without an error, an exit on the way, or too much of anything."""
    return run_program(program, limits).ended


def run_program(program: str, limits: Limits) -> Ran:
    """Run a program in a process of its own, within the limits."""
    word = secrets.token_hex(16)  # a program that exits early, with code 0, has not come to its end
    with tempfile.TemporaryDirectory(prefix="lrft-code-", ignore_cleanup_errors=True) as folder:
        place, said, wrong = Path(folder, "work"), Path(folder, "said"), Path(folder, "wrong")
        place.mkdir()
        file = Path(folder, "program.py")
        file.write_text(program, encoding="utf-8", errors="replace")
        numbers = (
            max(1, round(limits.seconds)), limits.memory, FILE_BYTES, OPEN_FILES, PROCESSES
        )  # fmt: skip
        command = [sys.executable, "-I", "-c", RUNNER, str(file), word, *map(str, numbers)]
        with said.open("wb") as out, wrong.open("wb") as errors:
            running = subprocess.Popen(
                [*UNSHARE, *command] if cuts_network() else command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
                cwd=place,
                env={"PATH": os.defpath, "HOME": str(place), "TMPDIR": str(place), "PYTHONHASHSEED": "0"},
                start_new_session=True,
            )
            try:
                code = running.wait(limits.seconds)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                _end(running)
        ended = code == 0 and _ends_with(said, word.encode())
        printed = said.read_bytes().removesuffix(word.encode())[:SAID].decode(errors="replace")
        lines = wrong.read_bytes()[-SAID:].decode(errors="replace").strip().splitlines()
        late = f"no end within {limits.seconds:g} seconds"
        return Ran(ended, printed, "" if ended else late if code is None else (lines or [""])[-1])


def _end(running: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the program, also after it has ended itself and left others behind."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(running.pid, signal.SIGKILL)
    running.wait()


def _ends_with(path: Path, word: bytes) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(word)))
        return file.read() == word
