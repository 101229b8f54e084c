"""The losses of a range test over their rates, as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrft.files.write import fresh_file
from lrft.registry.errors import MissingExtra, UsageError
from lrft.training.rate_choice import half_window, means

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Plot:
    """A picture that will be written to `path`. What would not work then is told now, before anything trains.

    Raises:
        MissingExtra: matplotlib is not installed; the message holds the install line.
        UsageError: its folder is not there, or matplotlib writes no such files.
    """

    def __init__(self, path: Path) -> None:
        try:
            from matplotlib.figure import Figure  # without pyplot, which would look for a display
        except ImportError:
            raise MissingExtra(
                "--plot: pictures are drawn by matplotlib; install it with `pip install 'lrft[plot]'`, or leave the "
                "option out"
            ) from None
        self.path = path
        self.figure: Figure = Figure(figsize=(7, 4), layout="constrained")
        kinds = self.figure.canvas.get_supported_filetypes()
        if path.suffix.removeprefix(".") not in kinds:
            raise UsageError(f"--plot {path}: choose a name that ends in .{', .'.join(sorted(kinds))}")
        if not path.absolute().parent.is_dir():
            raise UsageError(f"--plot {path}: no such folder as {path.parent}")

    def draw(self, found: Mapping[str, Any]) -> None:
        """Write the picture.

        Args:
            found: what `find_lr` returns.

        Raises:
            WriteError: it cannot be written.
        """
        axes = self.figure.add_subplot()
        rates, losses = found["rates"], found["losses"]
        axes.plot(rates, losses, color="0.75", label="loss of the step")
        axes.plot(rates, means(losses, half_window(len(rates))), label="mean of its neighbours")
        for name, style in (("steepest", ":"), ("blow_up", "--"), ("suggested", "-")):
            if found[name] is not None:
                axes.axvline(
                    found[name],
                    linestyle=style,
                    color="0.3",
                    label=f"{name.replace('_', '-')} {found[name]:.2g}",
                )
        axes.set(xscale="log", xlabel="learning rate", ylabel="training loss", title=found["recipe"])
        axes.legend()
        with fresh_file(self.path, f"--plot {self.path}") as path:
            self.figure.savefig(path, format=self.path.suffix.removeprefix("."))
