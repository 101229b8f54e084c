"""A script in several processes that know of each other: gloo on the CPU, as a launcher starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def launched(
    *command: str | Path, processes: int = 2, seconds: float = 250
) -> subprocess.CompletedProcess[str]:
    """Run `command`, a script with arguments or `-m MODULE ...`, in every process."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += ["--nproc-per-node", str(processes), *map(str, command)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        launcher, env=environment, capture_output=True, text=True, timeout=seconds, check=False
    )
