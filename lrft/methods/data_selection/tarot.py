"""Rows whose gradients are near those of target rows, once gradients are whitened."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.core.data_selection import Chosen, DataSelection, Measured, Selection
from lrft.methods.data_selection._distance import transported, unit
from lrft.registry.axes import DATA_SELECTIONS
from lrft.registry.config import Field, Literal, MethodConfig
from lrft.registry.errors import DataError


@DATA_SELECTIONS.register
class TAROT(DataSelection):
    """Targeted data selection by optimal transport of whitened gradient features.

        x_i = S^T grad_i / sqrt(P),  C = cov(x) + ridge I = L L^T,  z_i = (x_i - mean) L^-T / |(x_i - mean) L^-T|
        s_it = <z_i, z_t>,  d_it = sqrt(2 - 2 s_it)

    with grad_i the gradient of row i's mean loss by the adapter's P numbers, S (P, `dimensions`) random signs, mean and
    covariance over pool and target together. Layer k is the k-th most similar row of every target row t. With `size:
    fixed` layers are kept until the budget is reached; of the last one, those of the largest potential of the entropic
    transport between it and the target. With `size: transport` each of `folds` parts of the target takes layers, of
    similarities above 0, as long as the transport between what it has and the other parts falls; what the parts have is
    kept together, and there is no budget.

    Needs: a gradient of every row and target row, a backward pass each, of the adapter as it begins or of runs, whose
    gradients are averaged.
    Score: the largest s_it over the target rows.
    Source: "TAROT: Targeted Data Selection via Optimal Transport", 2024, arXiv 2412.00420, and the authors' code.
    Departures: gradients are kept in float32, and those of all runs are averaged before they are whitened (the code
    whitens those of the last one alone); a fold keeps what had the smallest transport (the code, the layer after it).
    Transport is iterated until 0.1 % of the mass at most is in the wrong place. Their weights of rows are left out.
    Rows that lie in more directions than half their number are refused: whitened, they are about orthogonal.
    Advice: name runs, or checkpoints, that were trained a little: where an adapter begins at zero, one factor has no
    gradient. Where the note says that the ridge is most of the covariance, lower `ridge`.
    """

    need = "gradients"
    targeted = True

    config: Config

    class Config(MethodConfig):
        size: Literal["fixed", "transport"] = Field(
            "fixed",
            description="fixed: as many rows as the budget says; transport: as many as lower its cost",
        )
        dimensions: int = Field(2048, gt=0, description="numbers that a gradient is projected to")
        ridge: float = Field(1e-5, gt=0, description="added to the variances")
        folds: int = Field(10, gt=1, description="parts of the target, of `size: transport`")
        blur: float = Field(0.01, gt=0, le=1, description="square root of the transport's temperature")

    def __init__(self, config: MethodConfig) -> None:
        super().__init__(config)
        self.counts = self.config.size == "transport"
        self.dimensions = self.config.dimensions

    def choose(self, pool: Measured, target: Measured | None, budget: int, seed: int) -> Selection:
        assert pool.features is not None and target is not None and target.features is not None
        z, ridge = whiten(torch.cat([pool.features, target.features]), self.config.ridge)
        rows, targets = z[: len(pool)], z[len(pool) :]
        similar = rows @ targets.T
        order = similar.argsort(dim=0, descending=True, stable=True)
        if self.counts:
            found = self._while_it_falls(rows, targets, similar, order, seed)
        else:
            found = self._layers(rows, targets, order, budget)
        best, nearest = similar.max(1)
        kept = sorted(found, key=lambda row: (found[row], -float(best[row]), row))
        chosen = [
            Chosen(
                row,
                float(best[row]),
                f"in layer {found[row]}, most like {target.where(int(nearest[row]))}",
            )
            for row in kept
        ]
        return Selection(chosen, (f"the ridge is {ridge:.0%} of the covariance's trace",))

    def _layers(self, rows: Tensor, targets: Tensor, order: Tensor, budget: int) -> dict[int, int]:
        """Row -> its layer, from 1, of so many rows."""
        found: dict[int, int] = {}
        for number, layer in enumerate(order, 1):
            new = sorted(set(layer.tolist()) - found.keys())
            if len(found) + len(new) > budget:
                potentials = transported(rows[new], targets, self.config.blur).f
                places = potentials.argsort(descending=True, stable=True)[: budget - len(found)]
                new = [new[place] for place in places.tolist()]
            found |= dict.fromkeys(new, number)
            if len(found) == budget:
                break
        return found

    def _while_it_falls(
        self, rows: Tensor, targets: Tensor, similar: Tensor, order: Tensor, seed: int
    ) -> dict[int, int]:
        """Row -> its first layer, of the rows that any part of the target keeps.

        Raises:
            DataError: the target has one row, or no row is like any of it.
        """
        folds = min(self.config.folds, len(targets))
        if folds < 2:
            raise DataError("--target: size: transport divides the target into parts, and it has one row")
        drawn = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))
        found: dict[int, int] = {}
        for part in drawn.tensor_split(folds):
            others = targets[sorted(set(range(len(targets))) - set(part.tolist()))]
            kept, least, layers = dict[int, int](), float("inf"), dict[int, int]()
            for number, layer in enumerate(order[:, part], 1):
                near = [
                    row for row, t in zip(layer.tolist(), part.tolist(), strict=True) if similar[row, t] > 0
                ]
                layers |= dict.fromkeys((row for row in near if row not in layers), number)
                if not layers:
                    break
                cost = transported(rows[sorted(layers)], others, self.config.blur).value
                if cost >= least:
                    break
                kept, least = dict(layers), cost
            found |= {row: min(number, found.get(row, number)) for row, number in kept.items()}
        if not found:
            raise DataError("--target: no row of the pool has a gradient like one of the target's")
        return found


def whiten(features: Tensor, ridge: float) -> tuple[Tensor, float]:
    """Rows of covariance I, each then at length 1, in float64, and the ridge's share of the trace before.

    Raises:
        DataError: there is nothing in them, or so many directions that every row would be as far from every other.
    """
    x = features.double()
    x = x - x.mean(0)
    covariance = x.T @ x / len(x)
    trace, added = float(covariance.trace()), ridge * len(covariance)
    if trace == 0:
        raise DataError("gradients: those of all rows are equal, so no row is nearer than another")
    factor = torch.linalg.cholesky(covariance + ridge * torch.eye(len(covariance), dtype=x.dtype))
    inverse = torch.linalg.solve_triangular(factor, torch.eye(len(covariance), dtype=x.dtype), upper=False)
    directions = len(covariance) - ridge * float(inverse.square().sum())
    if directions > len(x) / 2:
        raise DataError(
            f"gradients: {len(x)} rows, target ones among them, lie in {directions:.0f} directions, which whitening "
            "makes alike, so that every row is as far from every other; set dimensions to at most "
            f"{len(x) // 2}, or give more rows"
        )
    return unit(x @ inverse.T), added / (trace + added)
