"""The held-out loss row by row, so that two runs can be compared on each."""

from __future__ import annotations

from lrft.core.analysis import Analysis
from lrft.core.run import Run
from lrft.registry.axes import ANALYSES
from lrft.registry.errors import RecipeError


@ANALYSES.register
class RowLosses(Analysis):
    """Loss of every held-out row at the end of the run, for intervals over rows as well as seeds.

        loss_i   = summed cross-entropy of the supervised tokens of row i, in nats
        tokens_i = how many they are

    so that sum loss_i / sum tokens_i is the run's final `eval_loss`, up to the order of summation.

    Shapes: one number of each a row, in the order of the batches, which depends on the rows alone.
    Found: `held_out_rows` of result.json, `loss` and `tokens`, one entry a row. Costs one pass over the held-out rows.
    Source: none needed; a paired bootstrap over evaluation examples is standard.
    """

    def start(self, run: Run) -> None:
        if run.score is None:
            raise RecipeError(
                "row_losses scores held-out rows; give data.eval and train.eval_every", "analyse"
            )

    def finish(self, run: Run) -> None:
        assert run.score is not None
        scored = run.score()
        run.summary["held_out_rows"] = {
            "loss": [float(f"{loss:.8g}") for loss, _ in scored],
            "tokens": [tokens for _, tokens in scored],
        }
