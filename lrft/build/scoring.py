"""What of a recipe is scored while it trains, and which of the scores says what the best step is."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import islice

from lrft.build.text import Text
from lrft.core.batch import Batch
from lrft.core.run import Run
from lrft.data.steps import eval_batches
from lrft.evaluation.loss import held_out_loss, row_losses
from lrft.evaluation.subject import EvaluationStopped
from lrft.recipe.schema import Recipe
from lrft.training.scorer import Scorer, Timed


def make_scorer(recipe: Recipe, run: Run, text: Text) -> Scorer | None:
    """The callback that scores; None where the recipe asks for no score while it trains."""
    every = recipe.train.eval_every
    if every is None:
        return None
    encoded = text.held_out_encoded(recipe.eval.limit)
    batches = partial(eval_batches, encoded, recipe.eval.batch_tokens, text.pad_id)
    run.score = lambda: row_losses(run.model, batches(), run.team)
    # Longest rows come first, so the first batch asks for the most memory.
    return Scorer(
        [Timed(every, lambda run: _loss(run, batches()))],
        lambda run: held_out_loss(run.model, islice(batches(), 1)),
    )


def _loss(run: Run, batches: Iterable[Batch]) -> dict[str, float]:
    try:
        result = held_out_loss(run.model, batches, lambda: run.stop_signal is not None, team=run.team)
    except EvaluationStopped:
        return {}
    return {"eval_loss": result.loss, "eval_perplexity": result.perplexity}
