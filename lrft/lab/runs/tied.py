"""`python -m lrft.lab.runs.tied PID COMMAND...`: becomes the command, which is killed when its parent PID ends.

Ray ends a task by ending its worker process, and a search may be killed: what they started would train on, beside the
task's next try or the search that goes on.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # of linux/prctl.h; it outlasts exec


def tie(parent: int) -> None:
    """Have the system kill this process when its parent ends.

    Raises:
        SystemExit: the parent has ended already, or the system cannot.
    """
    if not sys.platform.startswith("linux"):
        sys.exit("error: --cluster ray: its nodes have to run Linux, where a process can end with its parent")
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        sys.exit(f"error: prctl: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:
        sys.exit("error: the process that began this training has ended")


if __name__ == "__main__":
    tie(int(sys.argv[1]))
    # Ray blocks SIGINT in what it starts, and a blocked signal stays so over exec.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    os.execvp(sys.argv[2], sys.argv[2:])
