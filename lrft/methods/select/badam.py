"""BAdam: Adam on one block of the model at a time."""

from __future__ import annotations

from fnmatch import fnmatchcase

import torch
from torch import nn

from lrft.core.params import ParamInfo
from lrft.core.run import Run
from lrft.methods.select._layers import Selection, layers, train_only
from lrft.registry.axes import SELECTORS
from lrft.registry.config import Field, Literal, Sequence
from lrft.registry.errors import RecipeError


@SELECTORS.register
class BAdam(Selection):
    """Block coordinate descent: one decoder layer trains for some steps, then the next, in turn.

        block of step t = order[floor(t / K) mod D]

    with K = `every`, D the number of blocks. `order: descending` goes from the last block to the first,
    `order: ascending` from the first, `order: random` draws a new order of all blocks for every D K steps. At a switch
    all optimizer state is deleted. A block that is not active has no gradient and keeps its values to the last bit.
    Blocks are the decoder layers; `embeddings: true` and `head: true` make one block each of the input embeddings
    (before the first layer) and of the head with all else outside the layers (after the last); without them these do
    not train. `always` names parameters that train with every block.

    Shapes: those of the model. Changes nothing at step 0.
    Trains: the active block, for K steps at a time. Between two steps everything that the recipe names requires
    gradients again, so it is saved whole.
    State: with AdamW 8 bytes per number of the active block alone, and 4 more for the paper's float32 copy of it, which
    is `trainable.update: master`; of the method itself none, as the block is a function of (seed, step).
    Source: Luo, Yu and Li, "BAdam: A Memory Efficient Full Parameter Optimization Method for Large Language Models",
    NeurIPS 2024, arXiv 2404.02827, and the package `badam`.
    Departures: every block gets K steps (the package gives the first K - 1), and weight decay stays what the optimizer
    was built with (the package overwrites it at every switch). Blocks of some rows of every matrix, the package's ratio
    mode, are left out.
    """

    aliases = {
        "badam block_coordinate": "adapter: null\ntrainable: full\nselect: badam",
        "badam_switch_interval": "adapter: null\ntrainable: full\nselect: {method: badam, every: 50}",
        "badam_switch_mode": "adapter: null\ntrainable: full\nselect: {method: badam, order: descending}",
    }
    requires = {"base_weights", "first_order"}

    config: Config

    class Config(Selection.Config):
        every: int = Field(50, gt=0, description="optimizer steps that a block trains before the next one")
        order: Literal["descending", "ascending", "random"] = Field(
            "descending", description="from the last block, from the first, or drawn anew for every round"
        )
        embeddings: bool = Field(False, description="the input embeddings are a block too")
        head: bool = Field(False, description="the head, with all else outside the layers, is a block too")
        always: list[str] = Field(
            default_factory=list, description="patterns of parameters that train with every block"
        )

        def check_length(self, total_steps: int, ranks: Sequence[int] = ()) -> None:
            """Refuse a run that ends with the first block."""
            self.refuse_one(self.every, total_steps, "block")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.blocks: list[list[ParamInfo]] = []
        self.always: list[nn.Parameter] = []

    def start(self, run: Run) -> None:
        outside = [info for info in run.parameters if not info.block]
        self.blocks = layers(run)
        if self.config.embeddings:
            embeddings = [info for info in outside if info.role == "embedding"]
            self.blocks.insert(0, _some(embeddings, "embeddings"))
        if self.config.head:
            rest = [info for info in outside if info.role != "embedding"]
            self.blocks.append(_some(rest, "head"))
        self.always = []
        for pattern in self.config.always:
            hits = [i.param for i in run.parameters if fnmatchcase(i.name, f"*{pattern}")]
            if not hits:
                raise RecipeError(f"pattern {pattern!r} matches no parameter that trains", "select.always")
            self.always += hits

    def before_step(self, run: Run) -> None:
        block = self.active_block(run.seed, run.step)
        if run.step % self.config.every == 0:
            run.reset_optimizer()
            run.record(active_block=block)
        train_only(run, [*(info.param for info in self.blocks[block]), *self.always])

    def active_block(self, seed: int, step: int) -> int:
        """Index of the block that trains in the step after `step` finished ones."""
        turn, place = divmod(step // self.config.every, len(self.blocks))
        if self.config.order == "descending":
            return len(self.blocks) - 1 - place
        if self.config.order == "ascending":
            return place
        generator = torch.Generator().manual_seed(seed * 1_000_003 + turn)
        return int(torch.randperm(len(self.blocks), generator=generator)[place])


def _some(infos: list[ParamInfo], key: str) -> list[ParamInfo]:
    """The parameters of a block that was asked for.

    Raises:
        RecipeError: there are none.
    """
    if not infos:
        raise RecipeError(
            "is true, but none of these trains; write false, or trainable: full", f"select.{key}"
        )
    return infos
