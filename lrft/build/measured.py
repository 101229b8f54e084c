"""What `measure` and `peaks_of` say of a recipe."""

from __future__ import annotations

from typing import NamedTuple, TypedDict


class Target(TypedDict):
    """What a pattern of `adapter.targets` matched."""

    pattern: str
    modules: int
    share: float


class MatrixShares(TypedDict):
    """Of all numbers in matrices, what share is adapted, stored in few bits, and out of reach of both."""

    numbers: int
    adapted: float
    quantized: float
    unreached: float
    sentence: str


class Measured(TypedDict):
    """Counts and bytes of a recipe."""

    base: int
    linear: int
    other: int
    trainable: int
    trainable_percent: float
    percent_of_base: float
    weight_bytes: int
    linear_bytes: int
    trainable_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    targets: list[Target]
    matrices: MatrixShares
    ranks_undecided: bool


class Peak(TypedDict):
    """Bytes of the moment that takes most, by what holds them.

    `working` is what lives within one layer, the optimizer's step or the writing of a checkpoint; `loss` the chunk of
    logits and what is beside it, where the loss is that moment; `allocator` what lies unused between blocks, on a CPU;
    `runtime` the CUDA context, or on a CPU the process with its libraries.
    """

    weights: int
    adapter: int
    gradients: int
    optimizer_state: int
    activations: int
    loss: int
    working: int
    allocator: int
    runtime: int
    total: int


class Peaks(NamedTuple):
    """What a recipe takes.

    Attributes:
        counted: parameters and bytes at rest.
        rounded: of merges into few bits: `requantize`, and `gguf` into a file of that kind, where they are possible.
        recomputed: layers that are computed again.
        moment: where in training the peak is.
        mixed: layers are mixtures of experts, each taken to be given as many tokens.
    """

    counted: Measured
    train: Peak
    eval: Peak
    merge: Peak
    rounded: dict[str, Peak]
    recomputed: int
    moment: str
    mixed: bool = False

    def by_use(self) -> dict[str, Peak]:
        """What is asked for -> its peak."""
        return {"train": self.train, "eval": self.eval, "merge": self.merge, **self.rounded}
