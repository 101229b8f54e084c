"""HFT: half of the matrices of every layer train, another half in every stage."""

from __future__ import annotations

import torch
from torch import nn

from lrft.core.params import ParamInfo
from lrft.core.run import Run
from lrft.methods.select._layers import Selection, layers, train_only
from lrft.registry.axes import SELECTORS
from lrft.registry.config import Field, Sequence

Category = list[list[list[nn.Parameter]]]
"""Of every layer that has some: its units, each with its parameters."""


@SELECTORS.register
class HFT(Selection):
    """Half fine-tuning: in every stage a random half of each category of matrices trains, and the rest stays.

        of n matrices of a category in each of D layers:  ceil(n / 2) train in ceil(D / 2) layers drawn at random,
                                                          floor(n / 2) in the others

    A category is the matrices beneath one module of a layer: of four of an attention two train in every layer, of three
    of a feed-forward block two in one half of the layers and one in the other; a tensor of all experts' matrices is one
    of its block's. The norms of a layer are a category too.
    A bias goes with its matrix. What is outside of the layers always trains, and so do adapters.

    A stage is a run, or `every` steps of it; the numbers of stages go on from `stage`, so that a run that follows on
    another says `stage: 1` and draws a new half. A draw is a function of (`train.seed`, number of the stage). What does
    not train has no gradient and keeps its values to the last bit; with a stage all optimizer state begins anew.

    Shapes: those of the model. Changes nothing at step 0.
    Trains: half of the layers' numbers where a category's matrices are of one size, and embeddings, head and final norm
    where `trainable` names them. Between two steps everything that the recipe trains requires gradients again, so it is
    saved whole.
    State: with AdamW 8 bytes per number that trains; of the method itself none. `half_fine_tuning` in result.json has
    seed, stage and the share that trained last.
    Source: Hui et al., "HFT: Half Fine-Tuning for Large Language Models", ACL 2025, arXiv 2404.18466; the rule from
    three descriptions of the paper, which have no code.
    Departures: settled here: a stage is a run (descriptions say round, stage or epoch), its optimizer is new, odd
    categories and odd numbers of layers round up as above, the final norm is outside of the layers.
    """

    aliases = {
        "half_fine_tuning half_ft": "adapter: null\ntrainable: full\nselect: hft",
    }
    requires = {"base_weights", "first_order"}

    config: Config

    class Config(Selection.Config):
        stage: int = Field(
            0, ge=0, description="number of the run's first stage; a run that follows has another"
        )
        every: int | None = Field(
            None, gt=0, description="optimizer steps of a stage; by default the whole run"
        )

        def check_length(self, total_steps: int, ranks: Sequence[int] = ()) -> None:
            """Refuse a run that ends with the first of several stages."""
            if self.every is not None:
                self.refuse_one(self.every, total_steps, "half", other=", or null")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.categories: list[Category] = []
        self.always: list[nn.Parameter] = []

    def start(self, run: Run) -> None:
        self.categories = categories([[i for i in layer if not i.site] for layer in layers(run)])
        self.always = [info.param for info in run.parameters if info.site or not info.block]

    def before_step(self, run: Run) -> None:
        turn, place = divmod(run.step, self.config.every or run.step + 1)
        stage = self.config.stage + turn
        active = [*self.always, *self.drawn(run.seed, stage)]
        if place == 0:
            run.reset_optimizer()
            run.record(stage=stage)
        train_only(run, active)
        share = sum(p.numel() for p in active) / sum(info.param.numel() for info in run.parameters)
        run.summary["half_fine_tuning"] = {"seed": run.seed, "stage": stage, "share": round(share, 4)}

    def drawn(self, seed: int, stage: int) -> list[nn.Parameter]:
        """What trains of the layers in a stage."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + stage)
        return [p for category in self.categories for p in half(category, generator)]


def half(category: Category, generator: torch.Generator) -> list[nn.Parameter]:
    """A random half of the units in every layer; of an odd number one more in a random half of the layers."""
    many = len(category)
    more = set(torch.randperm(many, generator=generator)[: (many + 1) // 2].tolist())
    chosen = []
    for index, units in enumerate(category):
        count = (len(units) + (index in more)) // 2
        for unit in torch.randperm(len(units), generator=generator)[:count].tolist():
            chosen += units[unit]
    return chosen


def categories(found: list[list[ParamInfo]]) -> list[Category]:
    """The units of all layers by what they are beneath and how many there are: matrices with their biases, norms."""
    made: dict[tuple[str, int], Category] = {}
    for layer in found:
        units: dict[str, list[ParamInfo]] = {}
        for info in layer:
            path = info.name.removeprefix(f"{info.block}.")
            units.setdefault(path.removesuffix(".weight").removesuffix(".bias"), []).append(info)
        beneath: dict[str, list[list[nn.Parameter]]] = {}
        for path, infos in units.items():
            is_matrix = any(info.role in ("matrix", "matrices") for info in infos)
            category = f"matrices of {path.rpartition('.')[0]}" if is_matrix else "norms"
            beneath.setdefault(category, []).append([info.param for info in infos])
        for category, members in beneath.items():
            made.setdefault((category, len(members)), []).append(members)
    return list(made.values())
