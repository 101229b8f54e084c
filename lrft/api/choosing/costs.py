"""What a way of adapting costs: so many tokens at so much each, training and asking added up."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lrft.data.steps import TrainData
from lrft.recipe.schema import Recipe
from lrft.registry.errors import UsageError
from lrft.registry.section import LARGEST

FORWARD = 2  # floating-point operations a parameter and token
BACKWARD_INPUTS = 2  # through frozen weights
BACKWARD_WEIGHTS = 2  # of weights that train
PETA = 1e15
MILLION = 1_000_000


@dataclass(frozen=True)
class Price:
    """Of a token, when training and when asking.

    Attributes:
        unit: what it is in: the price's own, or 10^15 floating-point operations.
    """

    training: float
    asking: float
    unit: str

    def of(self, training_tokens: float, asked_tokens: float) -> float:
        """Both parts added."""
        return self.training * training_tokens + self.asking * asked_tokens


def parse_price(text: str) -> Price:
    """`TRAINING,ASKING`, each what a million tokens cost.

    Raises:
        UsageError: it is not two numbers of 0 or more.
    """
    try:
        training, asking = (float(part) for part in text.split(","))
    except ValueError:
        training = asking = math.nan
    if not all(0 <= one <= LARGEST for one in (training, asking)):
        raise UsageError(
            f"--price {text}: write what a million tokens cost in training and in asking, as 3,0.5"
        )
    return Price(training / MILLION, asking / MILLION, "as --price")


def price_in_operations(recipe: Recipe, parameters: int) -> Price:
    """2 P operations a token forwards, 2 P through the weights back, 2 P more where these train, or are recomputed.

    Attention's own operations are left out.
    """
    backward = BACKWARD_INPUTS + (BACKWARD_WEIGHTS if recipe.adapter is None else 0)
    again = FORWARD if recipe.model.activation_checkpointing else 0
    training = (FORWARD + backward + again) * parameters / PETA
    return Price(training, FORWARD * parameters / PETA, "10^15 operations")


def training_tokens(recipe: Recipe, data: TrainData) -> float:
    """Tokens that a training passes, every epoch taken for one as long as the first.

    Args:
        data: its rows as they are put together, several of them in one where they are packed.
    """
    batches = [sum(data.lengths[index] for row in batch for index in row) for batch in data.layout(0)]
    epochs, rest = divmod(
        data.total_steps(recipe.train.max_steps, recipe.train.epochs), data.steps_per_epoch(0)
    )
    return float(epochs * sum(batches) + sum(n for k, n in enumerate(batches) if data.place_of(k)[0] < rest))
