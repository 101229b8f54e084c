"""Pictures of runs as PNG, drawn by matplotlib without a display, where it is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from lrft.files.write import fresh_file


class Axes(Protocol):
    """Matplotlib's, as far as it is drawn on."""

    def plot(self, *args: object, **settings: object) -> object: ...

    def errorbar(self, *args: object, **settings: object) -> object: ...

    def set_xticks(self, *args: object, **settings: object) -> object: ...

    def set(self, **settings: object) -> object: ...

    def set_axis_off(self) -> object: ...

    def legend(self, **settings: object) -> object: ...

    def tick_params(self, **settings: object) -> object: ...


class Figure(Protocol):
    """Matplotlib's, as far as it is divided into `Axes`."""

    def subplots(self, *args: object, **settings: object) -> Any: ...


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


@contextmanager
def drawn(path: Path, size: tuple[float, float], option: str = "--out") -> Iterator[Figure]:
    """A figure to draw on, of so many inches, which is written in the end.

    Args:
        option: that named the folder of `path`.

    Raises:
        WriteError: it cannot be written.
    """
    figure = import_module("matplotlib.figure").Figure(
        figsize=size, layout="constrained"
    )  # no pyplot, no display
    yield figure
    with fresh_file(path, f"{option} {path.parent}: {path.name}") as scratch:
        figure.savefig(scratch, dpi=120, format="png")
