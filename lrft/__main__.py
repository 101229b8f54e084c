"""`python -m lrft`, and the command: signals are heard before anything else is imported."""

from __future__ import annotations

import sys

from lrft.core import stop


def main() -> None:
    """The command line; a signal while it is being imported is one sentence and an exit code too."""
    stop.listen()
    try:
        try:
            from lrft.cli import main as run
        except BaseException as error:
            stopped = stop.behind(error)
            if stopped is None:
                raise
            _leave(stopped)
        run()
    finally:
        stop.give_up()


def _leave(stopped: stop.Stopped) -> None:
    """What `lrft.cli` would say, which is not there."""
    import json

    message, code = stop.sentence(stopped.number, stop.NOTHING), 128 + stopped.number
    if "--json" in sys.argv[1:]:
        error = {"message": message, "exit_code": code, "kind": "Interrupted", "problems": []}
        print(json.dumps({"error": error}, indent=2))
    if sys.stderr is not None:
        print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
