"""Flower's server app: `server_app:app` makes the rounds of a recipe with the clients that Flower has.

Of the run's configuration: `recipe`, a file or a packaged name; `out`, the run folder, where a run that is there goes
on; `overrides`, as on a command line; `timeout`, seconds that a round may take.
"""

from __future__ import annotations

import shlex
from functools import partial

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from lrft.api.flower.grid import OnGrid
from lrft.api.training.federate import federate
from lrft.core.notes import say

TIMEOUT = 3600.0

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """All rounds that are left; the run folder has the model, the scores and the bytes."""
    asked = context.run_config
    result = federate(
        str(asked["recipe"]),
        str(asked["out"]),
        resume=True,
        overrides=shlex.split(str(asked.get("overrides", ""))),
        reach=partial(OnGrid, grid, timeout=float(asked.get("timeout", TIMEOUT))),
    )
    say(f"{result['name']}: round {result['step']}, loss {result['loss']}")
