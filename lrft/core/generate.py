"""`Generator`: what is fitted on adapters of known tasks, and draws the adapter of another from what is known of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lrft.core.adapter import Factors
from lrft.registry.config import MethodConfig

Kind = Literal["last_state", "text", "prompts"]


@dataclass(frozen=True)
class Wants:
    """The condition of a task: what the frozen base makes of its rows, or of its description.

    Attributes:
        kind: `last_state`, the last hidden state of a row's last token, averaged over rows, (d,); `text`, that of all
            tokens of the description, averaged, (d,); `prompts`, those of the tokens of every prompt, zeros behind a
            short one, (rows, tokens, d).
        rows: how many training rows of the task are read at most.
        tokens: of a prompt, its last so many.
    """

    kind: Kind
    rows: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class Layout:
    """How the factors of an adapter stand in one vector, site after site, A before B.

    Attributes:
        shapes: `SITE.A` -> (r, in), `SITE.B` -> (out, r), in the order of the vector; the scale is in B.
    """

    shapes: Mapping[str, tuple[int, int]]

    @property
    def lengths(self) -> list[int]:
        """Numbers of every factor."""
        return [rows * columns for rows, columns in self.shapes.values()]

    @property
    def size(self) -> int:
        """Numbers of the vector."""
        return sum(self.lengths)

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """(..., size) -> name -> (..., rows, columns)."""
        parts = vector.split(self.lengths, dim=-1)
        return {
            name: part.unflatten(-1, shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def joined(self, factors: Mapping[str, Tensor]) -> Tensor:
        """Name -> (..., rows, columns) of every factor -> (..., size)."""
        return torch.cat([factors[name].flatten(-2) for name in self.shapes], dim=-1)

    def factors(self, vector: Tensor) -> dict[str, Factors]:
        """(size,) -> site -> A (r, in), B (out, r)."""
        found = self.split(vector)
        sites = [name.removesuffix(".A") for name in self.shapes if name.endswith(".A")]
        return {site: (found[f"{site}.A"], found[f"{site}.B"]) for site in sites}


@dataclass(frozen=True)
class Known:
    """A task of the library.

    Attributes:
        samples: (n, size) float32, the checkpoints of its one training, the oldest first.
        condition: as the generator wants it, float32.
    """

    name: str
    samples: Tensor
    condition: Tensor


@dataclass(frozen=True)
class Sizes:
    """What decides the shapes of a generator's own tensors.

    Attributes:
        condition: shape of a condition.
        tasks: of the library.
    """

    layout: Layout
    condition: tuple[int, ...]
    tasks: int


class Generator(nn.Module):
    """A network over adapters of one base. Parameters and buffers are all that is kept of a fit.

    Statistics are those of the library: of the task that an adapter is drawn for nothing is known but its condition.

    Class attributes:
        least: samples that every task has to have.
    """

    name: ClassVar[str]
    provides: ClassVar[set[str]] = set()
    requires: ClassVar[set[str]] = set()
    least: ClassVar[int] = 1
    Config: ClassVar[type[MethodConfig]] = MethodConfig

    config: Any  # its own `Config`

    def __init__(self, config: MethodConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config, self.sizes = config, sizes

    @classmethod
    def wants(cls, config: Any) -> Wants:
        """The condition that it is given of every task."""
        raise NotImplementedError(f"{cls.__name__} declares no wants")

    def prepare(self, known: Sequence[Known]) -> None:
        """Fill the buffers with what is taken from the library before the first step.

        Raises:
            UsageError: the library is of no use to it.
        """

    def steps(self, known: Sequence[Known]) -> int:
        """Optimizer steps of the fit; 0 for what trains nothing."""
        return 0

    def optimizer(self) -> Optimizer:
        """Over what trains, at its highest rate."""
        raise NotImplementedError(f"{type(self).__name__} declares no optimizer")

    @property
    def most(self) -> float | None:
        """The norm that a gradient is cut to; None for as it is."""
        return None

    def rate(self, step: int, steps: int) -> float:
        """The factor on the rate at a step, from 0 on."""
        return 1.0

    def loss(self, known: Sequence[Known], draws: torch.Generator) -> Tensor:
        """The loss of one step, a scalar; all that is drawn is drawn from `draws`, which follows from seed and step."""
        raise NotImplementedError(f"{type(self).__name__} declares no loss")

    @torch.no_grad()
    def draw(self, condition: Tensor, draws: torch.Generator) -> dict[str, Factors]:
        """The adapter of a task: site -> A (r, in), B (out, r), float32."""
        raise NotImplementedError(f"{type(self).__name__} declares no draw")

    def beside(self, condition: Tensor) -> dict[str, dict[str, Factors]]:
        """Name -> an adapter for the same condition that a generated one has to be better than."""
        return {}


def choose(count: int, wanted: int, draws: torch.Generator) -> list[int]:
    """So many of `count` places, each at most once; all of them, in a drawn order, where there are no more."""
    return torch.randperm(count, generator=draws)[:wanted].tolist()


def samples_of(known: Sequence[Known]) -> list[tuple[int, int]]:
    """(task, sample) of everything in the library."""
    return [(task, sample) for task, one in enumerate(known) for sample in range(len(one.samples))]
