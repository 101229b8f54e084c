"""Rows that pull the distribution of the pool towards that of the target rows."""

from __future__ import annotations

from lrft.core.data_selection import DataSelection, Measured, Selection, best
from lrft.methods.data_selection._distance import transported
from lrft.registry.axes import DATA_SELECTIONS
from lrft.registry.config import Field, MethodConfig


@DATA_SELECTIONS.register
class GOTD(DataSelection):
    """Gradients of optimal transport: keep the rows whose weight, raised, brings the pool nearest to the target.

        f, h = dual potentials of min over plans P of <P, C> + eps KL(P | a b^T),  C_ij = sqrt(2 - 2 cos(e_i, e_j))
        g_i = f_i - 1/(N - 1) sum over k != i of f_k
        keep the most negative g

    with e the embeddings, i one of the N rows of the pool and j one of the target, a and b even, eps = `blur`^2. g is
    the gradient of the transport's cost by the mass of row i, what it gains taken evenly off the others; it is the same
    whatever constant f has. A few rows trained on a model of the pool's kind move its distribution by so much.

    Needs: an embedding of every row and target row.
    Score: -g_i.
    Source: Kang et al., "Get more for less: Principled Data Selection for Warming Up Fine-Tuning in LLMs", 2024, arXiv
    2405.02774; the calibration as in Just et al., "LAVA", 2023, arXiv 2305.00054, whose authors are among them.
    Departures: settled here: the cost, a distance of normalised embeddings, and `blur`, as they print neither. The
    encoder is the recipe's own base (the mean of its last hidden states). Iterated until 0.1 % of the mass at most is
    in the wrong place, and refused above 5 %.
    Advice: it asks for a pool of the kind the model was pretrained on, and is for a first training before that on the
    target. Rows nearest to the target are what `betr` takes.
    """

    need = "embeddings"
    targeted = True

    config: Config

    class Config(MethodConfig):
        blur: float = Field(
            0.05, gt=0, le=1, description="square root of the temperature; larger is smoother and sooner done"
        )

    def choose(self, pool: Measured, target: Measured | None, budget: int, seed: int) -> Selection:
        assert pool.features is not None and target is not None and target.features is not None
        found = transported(pool.features, target.features, self.config.blur)
        others = max(len(pool) - 1, 1)
        gradients = found.f - (found.f.sum() - found.f) / others

        def reason(row: int) -> str:
            pulls = "nearer to" if gradients[row] < 0 else "away from"
            return f"pulls the pool {pulls} the target, gradient {float(gradients[row]):.3g}"

        note = f"transport costs {found.value:.4g}, {found.missed:.1%} of the mass in the wrong place"
        return Selection(best((-gradients).tolist(), budget, reason), (note,))
