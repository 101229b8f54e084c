"""MLflow: a run of an experiment, on the server or in the files that MLFLOW_TRACKING_URI names."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from lrft.core.run import Run
from lrft.registry.json import Json
from lrft.training.trackers.tracker import Tracker

if TYPE_CHECKING:
    from mlflow import MlflowClient

TOGETHER = 100  # parameters of a call, the most that MLflow takes
LONGEST = 500  # characters of a parameter, likewise


class Mlflow(Tracker):
    """A run of the experiment `logging.mlflow`, with every setting of the recipe as a parameter.

    The client is used and never MLflow's active run, which is the process's own affair.
    """

    key = library = "mlflow"
    install = "'lrft[mlflow]'"
    client: MlflowClient

    def begin(self, run: Run) -> str | None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self.client = MlflowClient()
        if self.id is not None:
            self.client.update_run(self.id, status="RUNNING")
            return self.id
        known = self.client.get_experiment_by_name(self.target)
        experiment = self.client.create_experiment(self.target) if known is None else known.experiment_id
        made: str = self.client.create_run(experiment, run_name=self.folder.name).info.run_id
        settings = [Param(key, str(value)[:LONGEST]) for key, value in _flat(self.settings)]
        for first in range(0, len(settings), TOGETHER):
            self.client.log_batch(made, params=settings[first : first + TOGETHER])
        return made

    def log(self, numbers: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(
            self.id, metrics=[Metric(key, value, now, step) for key, value in numbers.items()]
        )

    def end(self) -> None:
        self.client.set_terminated(self.id, "FINISHED" if self.complete else "KILLED")


def _flat(section: Mapping[str, Json], above: str = "") -> Iterator[tuple[str, Json]]:
    for key, value in section.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value
