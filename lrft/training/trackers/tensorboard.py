"""TensorBoard: event files in the run folder, or below one that several runs share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from lrft.core.run import Run
from lrft.training.trackers.tracker import Tracker

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

OWN = "tensorboard"  # the folder in the run's


class Tensorboard(Tracker):
    """`logging.tensorboard: true` writes into the run folder, a path into a folder of the run's name below it.

    Steps after the checkpoint that a run is gone on from are struck out of the older files.
    """

    key = library = "tensorboard"
    install = "'lrft[tensorboard]'"
    writer: SummaryWriter | None = None

    def begin(self, run: Run) -> str | None:
        from torch.utils.tensorboard import SummaryWriter

        name = self.id or self._free_name()
        place = Path(self.target) / name if self.target else self.folder / name
        self.writer = SummaryWriter(str(place), purge_step=run.step + 1)
        if not run.step:
            self.writer.add_text(
                "recipe", f"```yaml\n{yaml.safe_dump(dict(self.settings), sort_keys=False)}```"
            )
        return name

    def log(self, numbers: dict[str, float], step: int) -> None:
        assert self.writer is not None
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def end(self) -> None:
        if self.writer is not None:
            self.writer.close()

    def _free_name(self) -> str:
        """The name below the run folder; in a shared folder a new one, since another run may have had this run's."""
        if not self.target:
            return OWN
        name, count = self.folder.name, 1
        while (Path(self.target) / name).exists():
            count += 1
            name = f"{self.folder.name}-{count}"
        return name
