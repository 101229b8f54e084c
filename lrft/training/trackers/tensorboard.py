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

        place = self.id or str(self._place())
        self.writer = SummaryWriter(place, purge_step=run.step + 1)
        if not run.step:
            self.writer.add_text(
                "recipe", f"```yaml\n{yaml.safe_dump(dict(self.settings), sort_keys=False)}```"
            )
        return place

    def log(self, numbers: dict[str, float], step: int) -> None:
        assert self.writer is not None
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def end(self) -> None:
        if self.writer is not None:
            self.writer.close()

    def _place(self) -> Path:
        """The run's own folder; in a shared one a new folder, since another run may have had the name."""
        if not self.target:
            return self.folder.absolute() / OWN
        place, count = Path(self.target).absolute() / self.folder.name, 1
        while place.exists():
            count += 1
            place = place.with_name(f"{self.folder.name}-{count}")
        return place
