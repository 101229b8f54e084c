"""Runs commands of the lrft that it can import, one after the other: a line of arguments in, a line of what came out.

    python in_turn.py < JSON lines of arguments

A process for all of a test's commands, since the imports of one take longer than most commands.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile

from lrft.cli import main


def run(arguments: list[str]) -> tuple[int, str, str]:
    """Exit code and both streams of one command."""
    sys.argv = ["lrft", *arguments]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        try:
            main()
            code = 0
        except SystemExit as stopped:
            code = stopped.code or 0
        sys.stdout.flush()
        sys.stderr.flush()
        return code, *(_content(file) for file in (out, err))


def _content(file) -> str:
    file.seek(0)
    return file.read()


answers = os.fdopen(os.dup(1), "w")
for line in sys.stdin:
    print(json.dumps(run(json.loads(line))), file=answers, flush=True)
