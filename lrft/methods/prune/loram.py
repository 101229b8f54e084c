"""LoRAM: an adapter trains on a base without most of its heads and channels, and is used on the whole one."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrft.core.run import Run
from lrft.core.units import Pruner, Units, leading, prunable, remaining
from lrft.files.json import read_object
from lrft.files.sums import file_sum
from lrft.files.tensors import check_tensor_file
from lrft.registry.axes import PRUNERS
from lrft.registry.config import Field, Iterator, Literal, MethodConfig, Problem, RecipeView
from lrft.registry.errors import CheckpointError, RecipeError

UNITS = "units.json"
ASKED = ("low_rank", "linear_delta", "trained_pair", "factor_product")


@PRUNERS.register
class LoRAM(Pruner):
    """Train small, infer large: the adapter of a pruned base, recovered by zeros for the whole one.

        W_p = W less rows, or columns, of the units that go;   y = W_p x + s B A x         trains
        W'  = W + s B_R A_R                                                                is used

    with B_R (A_R) the B (A) of W_p with zeros in the rows (columns) that W_p lacks: W' is W there. A unit is the query
    heads that share a key head, with it and its values (rows of q, k, v, columns of o), or a channel of the
    feed-forward block (rows of gate and up, a column of down). int(n `ratio`) of n units go in every layer but the
    first `whole_first` and the last `whole_last`: those that `choose` draws, or those of the smallest norm.

    Without an adapter, and with weights that train, this is LoRAM's alignment: the small model itself is trained, and
    `lrft merge` writes it, with units.json. `aligned` names that folder: W_p begins with its weights and its units.

    Shapes: W (out, in), A (rank, in), B (out, rank), of W_p less. At step 0 W' is W; W_p x is not W x.
    Trains: what the adapter trains on the layers that are left: rank (in + out) numbers of what W_p has.
    State: which units stay, a byte each; the sha256 of `aligned`.
    Source: Zhang et al., "Train Small, Infer Large: Memory-Efficient LoRA Training for Large Language Models", ICLR
    2025, arXiv 2502.13533, and the authors' code: the recovery by zeros, the units and the layers that stay are its.
    Departures: the code reads which units go from files that it does not make; here they are drawn (LoRAM-Rand), or of
    the smallest Frobenius norm. Its gradient criterion (LoRAM-Stru), masks of single entries (LoRAM-Semi, -Unst, whose
    shapes are W's own) and noise in the place of zeros are left out. The whole base is read on the host and cut there;
    the device holds W_p alone. Scores taken while it trains are those of W_p, `lrft eval RUN` those of W'.
    Advice: LLaMA-3.1-70B: ratio 0.85, LoRA of rank 8, alpha 16, rate 1e-5, on W_p in nf4 (QLoRAM). Alignment there: all
    weights but the head, AdamW, rate 5e-5, cosine after 100 steps of warm-up, on general text.
    """

    aliases = {
        "qloram": "quantization: nf4\nprune: loram",
        "train_small_infer_large": "prune: loram",
    }
    provides = {"cut_units"}
    requires = {"one_stage"}

    config: Config

    class Config(MethodConfig):
        ratio: float = Field(
            0.85, gt=0, lt=1, description="share of the units of each pruned block that goes"
        )
        choose: Literal["random", "magnitude"] = Field(
            "random",
            description="which go: drawn by train.seed, or those whose weights have the smallest norm",
        )
        whole_first: int = Field(4, ge=0, description="layers, the first ones, that stay whole")
        whole_last: int = Field(2, ge=0, description="layers, the last ones, that stay whole")
        aligned: str | None = Field(
            None,
            description="folder that `lrft merge` wrote of a run that aligned the pruned base; null for none",
        )

        def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
            """Changes that zeros cannot recover, and what would read the whole base beside the pruned one."""
            adapter, init = recipe.declared("adapter"), recipe.declared("init")
            if adapter is not None and set(ASKED) - adapter.provides:
                message = f"{adapter.name} cannot be put back on the whole base (prune: loram); choose "
                known = [set(recipe.that_provide("adapter", trait)) for trait in ASKED]
                yield Problem("adapter.method", message + " or ".join(sorted(set.intersection(*known))))
            if init is not None and "kept_base" not in init.provides:
                message = f"{init.name} takes a start off a base that the adapter is not used on (prune: loram); write "
                yield Problem("init.method", message + "default")
            if adapter is not None and recipe["trainable.weights"] != "adapter":
                message = "would train on a base that is not used afterwards (prune: loram); write adapter"
                yield Problem("trainable.weights", message)
            if adapter is None and self.aligned is not None:
                yield Problem(
                    "prune.aligned", "is for an adapter to begin with; write null, or choose an adapter"
                )
            for key in ("model.adapter", "model.head", "analyse"):
                if isinstance(asked := recipe[key], str | list | dict) and asked:
                    message = (
                        "is of the whole base, and this trains on a part of it (prune: loram); remove it"
                    )
                    yield Problem(key, message)

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.sums: dict[str, str] = {}  # file of `aligned` -> sha256

    def choose(self, units: list[Units], weight: Callable[[str], Tensor], seed: int) -> dict[str, Tensor]:
        if self.config.aligned is not None:
            return read_units(Path(self.config.aligned), units)
        return {one.name: self._stay(one, weight, seed) for one in self._pruned(units)}

    def foresee(self, units: list[Units]) -> dict[str, Tensor]:
        if self.config.aligned is not None:
            return read_units(Path(self.config.aligned), units)
        return {
            one.name: leading(one, remaining(one.count, self.config.ratio)) for one in self._pruned(units)
        }

    def _pruned(self, units: list[Units]) -> list[Units]:
        return prunable(units, self.config.whole_first, self.config.whole_last)

    def _stay(self, units: Units, weight: Callable[[str], Tensor], seed: int) -> Tensor:
        if self.config.choose == "random":
            generator = torch.Generator().manual_seed(seed * 1_000_003 + zlib.crc32(units.name.encode()))
            order = torch.randperm(units.count, generator=generator)
        else:
            squares = [units.sums(layer, weight(layer).float().square()) for layer in units.layers]
            order = torch.stack(squares).sum(0).argsort(descending=True, stable=True).cpu()
        stays = torch.zeros(units.count, dtype=torch.uint8)
        return stays.index_fill_(0, order[: remaining(units.count, self.config.ratio)], 1)

    def weights(self) -> Mapping[str, Tensor] | None:
        if self.config.aligned is None:
            return None
        from safetensors.torch import load_file

        found: dict[str, Tensor] = {}
        for path in _files(Path(self.config.aligned)):
            check_tensor_file(path)
            found.update(load_file(path))
        return found

    def start(self, run: Run) -> None:
        if self.config.aligned is None:
            return
        now = {path.name: file_sum(path)["sha256"] for path in _files(Path(self.config.aligned))}
        if self.sums and self.sums != now:
            raise CheckpointError(
                f"{self.config.aligned} changed since the run began; put back what was there"
            )
        self.sums = now

    def state_dict(self) -> dict[str, str]:
        return dict(self.sums)

    def load_state_dict(self, state: dict[str, str]) -> None:
        self.sums = dict(state)


def read_units(folder: Path, units: list[Units]) -> dict[str, Tensor]:
    """What of each unit stays in a folder that `lrft merge` wrote, (count,) uint8.

    Raises:
        RecipeError: it says it of other units.
    """
    if not (folder / UNITS).is_file():
        message = f"{folder} has no {UNITS}; name what `lrft merge` wrote of a run with prune: loram and adapter: null"
        raise RecipeError(message, "prune.aligned")
    kept, found = read_object(folder / UNITS, dict[str, list[int]]), {}
    for one in units:
        places = torch.tensor(kept.get(one.name, []), dtype=torch.long)
        if (
            not len(places)
            or places.min() < 0
            or places.max() >= one.count
            or kept.keys() != {u.name for u in units}
        ):
            message = f"{folder / UNITS} is of another model, or keeps nothing of {one.name}; name one of model.name"
            raise RecipeError(message, "prune.aligned")
        found[one.name] = torch.zeros(one.count, dtype=torch.uint8).index_fill_(0, places, 1)
    return found


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))
