"""What the base reads of a task: some of its training rows, or its description."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lrft.build.dataset import read_renderer
from lrft.build.rows import training_rows
from lrft.core.generate import Wants
from lrft.data.encoded import Encoded
from lrft.data.row_sums import record_rows
from lrft.evaluation.conditions import condition_of_rows, condition_of_text
from lrft.evaluation.subject import Progress
from lrft.model.causal_lm import CausalLM
from lrft.recipe.schema import Recipe
from lrft.registry.errors import UsageError
from lrft.registry.json import Json


@dataclass(frozen=True)
class Reading:
    """What is read.

    Attributes:
        rows: encoded; of a description one row that is all of it.
        batch_tokens: most tokens of a batch, padding included.
    """

    wants: Wants
    rows: Sequence[Encoded]
    batch_tokens: int
    pad_id: int

    @property
    def record(self) -> list[Json]:
        """What decides the condition, beside the base."""
        return [record_rows(self.rows)["sha256"], self.batch_tokens]

    def condition(self, base: CausalLM, progress: Progress) -> Tensor:
        """What the base makes of it, as the generator wants it.

        Raises:
            DataError: there is nothing to read.
            NumericalError: a state is no finite number.
        """
        if self.wants.kind == "text":
            return condition_of_text(base, self.rows[0].input_ids, self.pad_id)
        return condition_of_rows(
            base,
            self.rows,
            self.wants,
            batch_tokens=self.batch_tokens,
            pad_id=self.pad_id,
            progress=progress,
        )


def read_task(recipe: Recipe, wants: Wants, text: str | None, name: str, trust_remote_code: bool) -> Reading:
    """What a generator goes by, of one task.

    Args:
        text: its description, for a generator that goes by one.

    Raises:
        UsageError: a description is wanted and not there, or the other way round; or there are too few rows.
    """
    held = read_renderer(recipe, trust_remote_code=trust_remote_code)
    if wants.kind == "text":
        if text is None:
            raise UsageError(
                f"--describe: {name} has none, and this generator goes by what a text says of it"
            )
        ids = held.tokenizer(text, add_special_tokens=False)["input_ids"]
        return Reading(
            wants, [Encoded(ids, [False] * len(ids), length=len(ids))], recipe.eval.batch_tokens, held.pad_id
        )
    if text is not None:
        raise UsageError(
            f"--describe: this generator goes by the rows of {name} and reads no text; leave it out"
        )
    rows = held.usable(training_rows(recipe), "data.train", wants.rows)
    if wants.kind == "prompts" and len(rows) < wants.rows:
        raise UsageError(
            f"{name}: has {len(rows)} training rows, and {wants.rows} prompts are read of every task; ask for fewer"
        )
    return Reading(wants, rows, recipe.eval.batch_tokens, held.pad_id)
