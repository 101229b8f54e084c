"""LIFT: the entries of the weights that are largest after rank reduction train."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lrft.core.params import ParamInfo, check_single
from lrft.core.run import Run
from lrft.methods.select._layers import Selection, layers, train_only
from lrft.ops.linalg import truncated_svd
from lrft.registry.axes import SELECTORS
from lrft.registry.config import Field, Iterator, Problem, RecipeView, Sequence
from lrft.registry.errors import RecipeError


@SELECTORS.register
class LIFT(Selection):
    """Low-rank informed sparse fine-tuning: entries that are large in a low-rank approximation of W train.

        k = min((rows + columns) r, rows columns)
        before steps 0, K - 1, 2 K - 1, ...:  M = the k largest entries of |W_f|
        after every backward pass:            G <- G where M, else 0
        where M was taken anew:               the optimizer's moments <- 0 outside of M

    with K = `every`, r = `budget_rank`, f = `filter_rank`, W_f the best approximation of rank f of W as it then is; M
    and k are those of each matrix. Entries that stay keep their moments, new ones begin at 0, the step count goes on.
    An entry outside of M keeps its value to the last bit. Of entries of one size the first are taken.

    Shapes: those of the model. Changes nothing at step 0.
    Trains: k numbers of every matrix of a decoder layer that `trainable` names, as many as a LoRA of rank r has; beside
    them adapters. Embeddings, head, norms and biases rest; experts that one tensor holds are refused. Between two steps
    everything that the recipe names requires gradients again, so it is saved whole.
    State: the places of M, 8 bytes each, 4 in a checkpoint. The optimizer's moments are as large as the matrices, with
    zeros outside of M.
    Source: Liu et al., "LIFT the Veil for the Truth: Principal Weights Emerge after Rank Reduction for
    Reasoning-Focused Supervised Fine-Tuning", ICML 2025. The rule is the paper's; every released configuration of the
    authors' code, when it was run, took the smallest entries instead.
    Departures: moments are dense, so that any optimizer that keeps them by entry will do; the code keeps vectors of k,
    and its AdamW adds 1e-6 to the root of the second moment before that is corrected for its start.
    Advice: `budget_rank: 128`, betas 0.9 and 0.95, learning rate 1e-4 to 2e-4 in the authors' scripts.
    """

    aliases = {
        "lift_sparse principal_weights": "adapter: null\ntrainable: full\nselect: lift",
    }
    requires = {"base_weights", "first_order", "entry_moments"}
    early = 1  # as the authors' code counts

    config: Config

    class Config(Selection.Config):
        budget_rank: int = Field(
            128, gt=0, le=65_536, description="of the LoRA that has as many numbers as train"
        )
        filter_rank: int = Field(
            128, gt=0, le=65_536, description="of the approximation that says which are largest"
        )
        every: int = Field(400, gt=0, description="optimizer steps between two selections")

        def check_length(self, total_steps: int, ranks: Sequence[int] = ()) -> None:
            """Refuse a run that ends with the first selection."""
            if self.every > total_steps:
                self.refuse_one(self.every, total_steps, "selection")

        def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
            """What moves entries that have no gradient, or moves them before theirs is set to 0."""
            if recipe["optimizer.weight_decay"]:
                message = "would shrink the entries that do not train (select: lift); write 0"
                yield Problem("optimizer.weight_decay", message)
            if recipe["optimizer.per_layer"]:
                message = (
                    "updates before gradients are set to 0 where nothing trains (select: lift); write false"
                )
                yield Problem("optimizer.per_layer", message)

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.matrices: list[ParamInfo] = []
        self.places: dict[str, Tensor] = {}  # of the entries that train, in the flattened matrix

    def start(self, run: Run) -> None:
        check_single([info for layer in layers(run) for info in layer], "select: lift")
        self.matrices = _matrices(run)
        if not self.matrices:
            message = "names no matrix of a decoder layer, so there is no entry to select; write full"
            raise RecipeError(message, "trainable.weights")
        self.places = {name: places.to(run.device) for name, places in self.places.items()}

    def before_step(self, run: Run) -> None:
        if run.step == 0 or (run.step + self.early) % self.config.every == 0:
            for info in self.matrices:
                self.places[info.name] = self.largest(info.param.detach())
                for moment in moments(run, info):
                    keep_only(moment, self.places[info.name])
        adapters = [info for info in run.parameters if info.site]
        train_only(run, [info.param for info in (*self.matrices, *adapters)])

    def largest(self, weight: Tensor) -> Tensor:
        """Where the k largest entries of the approximation stand in the flattened matrix, ascending."""
        U, S, Vh = truncated_svd(weight, self.config.filter_rank)
        sizes = ((U * S) @ Vh).abs().flatten()
        order = sizes.sort(descending=True, stable=True).indices
        return order[: self._chosen(weight)].sort().values

    def _chosen(self, weight: Tensor) -> int:
        return min(weight.numel(), sum(weight.shape) * self.config.budget_rank)

    def after_backward(self, run: Run) -> None:
        super().after_backward(run)
        for info in self.matrices:
            if info.param.grad is not None:
                keep_only(info.param.grad, self.places[info.name])

    def state_dict(self) -> dict[str, Any]:
        weights = {info.name: info.param for info in self.matrices}
        return {name: places.to(_index_of(weights[name])) for name, places in self.places.items()}

    def kept_later(self, run: Run) -> dict[str, Any]:
        weights = {info.name: info.param for info in _matrices(run)}
        return {
            name: torch.empty(self._chosen(weight), dtype=_index_of(weight), device="meta")
            for name, weight in weights.items()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.places = {name: places.long() for name, places in state.items()}


def _matrices(run: Run) -> list[ParamInfo]:
    """What entries are selected of: the matrices of decoder layers."""
    return [info for layer in layers(run) for info in layer if info.role == "matrix" and not info.site]


def _index_of(weight: Tensor) -> torch.dtype:
    """What a place in the flattened weight is kept as."""
    return torch.int32 if weight.numel() < 2**31 else torch.int64


def moments(run: Run, info: ParamInfo) -> Iterator[Tensor]:
    """What the optimizer keeps of every entry of a parameter; `master` is the parameter itself."""
    for name, value in run.optimizer.state.get(info.param, {}).items():
        if name != "master" and torch.is_tensor(value) and value.shape == info.param.shape:
            yield value


def keep_only(tensor: Tensor, places: Tensor) -> None:
    """Zero everything but the entries at these places of the flattened tensor."""
    kept = tensor.take(places)
    tensor.zero_().put_(places, kept)
