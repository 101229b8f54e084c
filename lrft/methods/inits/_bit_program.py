"""The integer program that gives every matrix one storage configuration within a budget of bits."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from lrft.registry.errors import MissingExtra

COST_NORM = 1000.0  # costs are brought to this Frobenius norm, so that the solver's tolerances suit any model
OPTIONS = {
    "output_flag": False,
    "mip_rel_gap": 0.0,
    "mip_feasibility_tolerance": 1e-9,  # shares of the budget: below a bit for most models
    "primal_feasibility_tolerance": 1e-9,
    "threads": 1,  # the same assignment on every machine
    "time_limit": 60.0,  # seconds; then the best assignment found so far is taken
}


def assign(costs: Tensor, sizes: Tensor, budget: float) -> list[int]:
    """The configuration j of every matrix i with the least sum of costs[i, j] under sum of sizes[i, j] <= budget.

    min sum c_ij x_ij   s.t.   sum g_ij x_ij <= budget,   sum_j x_ij = 1,   x_ij in {0, 1}

    Args:
        costs: (matrices, configurations), finite and not negative.
        sizes: (matrices, configurations), in the unit of `budget`.

    Raises:
        ValueError: even the smallest configurations exceed the budget.
        MissingExtra: the solver is not installed.
    """
    costs, sizes = costs.double(), sizes.double()
    smallest = float(sizes.min(dim=1).values.sum())
    if smallest > budget:
        raise ValueError(f"the smallest configurations need {smallest / budget:.4g} times the budget")
    highs = _solver()
    solver = highs.Highs()
    for option, value in OPTIONS.items():
        solver.setOptionValue(option, value)
    solver.passModel(_model(highs, costs, sizes, budget))
    solver.run()
    chosen = torch.tensor(solver.getSolution().col_value, dtype=torch.float64)
    if len(chosen) != costs.numel():
        raise ValueError(f"the solver found no assignment: {solver.getModelStatus()}")
    picked = chosen.view_as(costs).argmax(dim=1)
    spent = float(sizes.gather(1, picked[:, None]).sum())
    assert spent <= budget * (1 + 1e-9), "the solver left the budget"
    return [int(j) for j in picked]


def _model(highs: Any, costs: Tensor, sizes: Tensor, budget: float) -> Any:
    """Columns x_ij, row by row; the first constraint is the budget, in shares of it, then one a matrix."""
    matrices, configurations = costs.shape
    count = costs.numel()
    scale = float(torch.linalg.norm(costs))
    program = highs.HighsLp()
    program.num_col_, program.num_row_ = count, matrices + 1
    program.col_cost_ = (costs.reshape(-1) * (COST_NORM / scale if scale > 0 else 1.0)).tolist()
    program.col_lower_, program.col_upper_ = [0.0] * count, [1.0] * count
    program.integrality_ = [highs.HighsVarType.kInteger] * count
    program.row_lower_ = [0.0] + [1.0] * matrices
    program.row_upper_ = [1.0] * (matrices + 1)
    program.a_matrix_.format_ = highs.MatrixFormat.kColwise
    program.a_matrix_.start_ = list(range(0, 2 * count + 1, 2))
    rows, shares = [], (sizes.reshape(-1) / budget).tolist()
    values = []
    for column, share in enumerate(shares):
        rows += [0, 1 + column // configurations]
        values += [share, 1.0]
    program.a_matrix_.index_, program.a_matrix_.value_ = rows, values
    return program


def _solver() -> Any:
    """The module `highspy`.

    Raises:
        MissingExtra: it is not installed; the message holds the install line.
    """
    try:
        return importlib.import_module("highspy")
    except ImportError:
        raise MissingExtra(
            "init.budget: sharing bits out over the layers needs an integer program solver; "
            "install it with `pip install 'lrft[lq]'`, or write budget: null"
        ) from None
