"""How far training moved each layer, and each kind of matrix."""

from __future__ import annotations

import math
import re
from collections import defaultdict

import torch

from lrft.core.analysis import Analysis, changed
from lrft.core.run import Run
from lrft.registry.axes import ANALYSES

BLOCK = re.compile(r".*?\.\d+(?=\.)")


@ANALYSES.register
class LayerChange(Analysis):
    """Relative size of the change of every weight, every decoder layer and every kind of matrix.

        ratio(S) = sqrt(sum over W in S of ||dW||_F^2) / sqrt(sum over W in S of ||W||_F^2)

    for S one site, all sites of a decoder layer, all sites of one name (`q_proj`), and all sites; W the weight before
    training as it is stored, dW all that was added since, folds of restarts included. 0 where nothing moved.

    Shapes: W, dW (out, in).
    Found: `site`, `layer`, `kind`, and `all`. Costs two norms a site.
    Source: none needed; Frobenius norms.
    """

    aliases = {
        "relative_change weight_change": "analyse: [layer_change]",
    }

    def start(self, run: Run) -> None:
        changed(run)  # refused now and not at the end

    @torch.no_grad()
    def finish(self, run: Run) -> None:
        sums: dict[str, dict[str, list[float]]] = {
            name: defaultdict(lambda: [0.0, 0.0]) for name in ("site", "layer", "kind")
        }
        total = [0.0, 0.0]
        for change in changed(run).changes():
            squares = (
                float(change.change.double().square().sum()),
                float(change.before.double().square().sum()),
            )
            site = change.site
            groups = {"site": site, "layer": layer_of(site), "kind": site.rpartition(".")[2]}
            for of in (*(sums[name][key] for name, key in groups.items()), total):
                of[0] += squares[0]
                of[1] += squares[1]
        for name, found in sums.items():
            self.note(**{name: {key: ratio(*squares) for key, squares in found.items()}})
        self.note(all=ratio(*total))
        super().finish(run)


def layer_of(site: str) -> str:
    """The decoder layer that a site is in (`model.layers.3`), or the site itself."""
    found = BLOCK.match(site)
    return site if found is None else found[0]


def ratio(changed: float, before: float) -> float:
    """Sqrt of the quotient; infinite where zeros moved."""
    if not changed:
        return 0.0
    return math.sqrt(changed / before) if before else math.inf
