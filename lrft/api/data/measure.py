"""What a selection asks of every row, measured into a file that a killed command goes on with."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lrft.api.opening.open_run import open_run
from lrft.build.adapt import adapt
from lrft.build.identify import identify_base, reads_alike
from lrft.build.text import Text
from lrft.core import stop
from lrft.core.data_selection import Asks, Need
from lrft.data.encoded import Encoded
from lrft.data.row_sums import record_rows
from lrft.evaluation.answers_file import AnswersFile, Line
from lrft.evaluation.row_features import measure_rows
from lrft.evaluation.subject import Progress
from lrft.model.causal_lm import CausalLM
from lrft.model.decisive import sum_of
from lrft.model.load import load_model
from lrft.recipe.resolved import recipe_hash
from lrft.recipe.schema import Recipe
from lrft.registry.errors import UsageError
from lrft.registry.json import Json
from lrft.training.device import make_accelerator
from lrft.training.folder import RunFolder, find

VALUES = "float32"  # of a line, the numbers of a row


class MeasuredLine(Line):
    """What was measured of a row, in base64."""

    float32: str


@dataclass(frozen=True)
class Part:
    """Rows that are measured together.

    Attributes:
        file: ends in .jsonl.
    """

    rows: Sequence[Encoded]
    where: Callable[[int], str]
    file: Path


@dataclass(frozen=True)
class Measuring:
    """With what rows are measured.

    Attributes:
        runs: whose weights are used, one after the other; where there is none, the recipe's as they begin.
        seed: of the projection of gradients.
    """

    recipe: Recipe
    text: Text
    method: Asks
    runs: Sequence[Path | str] = ()
    seed: int = 0
    trust_remote_code: bool = False
    progress: Progress | None = None

    def features(self, parts: Sequence[Part]) -> list[Tensor | None]:
        """What the method needs of the rows of every part, (rows, numbers); None where it needs nothing.

        Raises:
            UsageError: a run is of another model, or a file holds something else.
        """
        if (need := self.method.need) is None:
            return [None] * len(parts)
        sums: list[Tensor] = []
        for number, run in enumerate(self.runs or [None], 1):
            with self._opened(need, run) as (model, about):
                found = [self.measured(model, part, need, about, number) for part in parts]
            sums = [a + b for a, b in zip(sums, found, strict=True)] if sums else found
        return [total / max(len(self.runs), 1) for total in sums]

    @contextmanager
    def _opened(self, need: Need, run: Path | str | None) -> Iterator[tuple[CausalLM, dict[str, Json]]]:
        """The model, and what decides what it makes of a row."""
        recipe = self.recipe
        if run is not None:
            folder = find(run)
            folder.trusted = self.trust_remote_code
            yield self._of_run(folder)
            return
        device = make_accelerator(recipe.train.device, recipe.model.dtype).device
        trusted, seed = self.trust_remote_code, recipe.train.seed
        if need == "gradients":
            adaptation = adapt(recipe, device=device, trust_remote_code=trusted, text=self.text)
            known = identify_base(recipe.model, adaptation.model)
            yield adaptation.model, {"begins": recipe_hash(recipe), **known}
            return
        model = load_model(recipe.model, device=device, trust_remote_code=trusted, seed=seed)
        model.hf.to(device)
        yield model, identify_base(recipe.model, model)

    def _of_run(self, folder: RunFolder) -> tuple[CausalLM, dict[str, Json]]:
        recipe, _, adaptation = open_run(folder)
        assert folder.opened is not None, "open_run opens one"
        if not reads_alike(self.recipe.model, recipe.model):
            raise UsageError(
                f"{folder.path}: its model is {recipe.model.name}, and the rows are tokenized for "
                f"{self.recipe.model.name}, or another revision, tokenizer or add_tokens; give a run of that"
            )
        return adaptation.model, {"run": folder.opened.manifest_sha256}

    def measured(
        self, model: CausalLM, part: Part, need: Need, about: Mapping[str, Json], number: int
    ) -> Tensor:
        """From the file as far as it goes, the rest measured and added to it."""
        suffix = "" if number == 1 else f"-{number}"
        file = AnswersFile(part.file.with_suffix(f".{need}{suffix}.jsonl"), MeasuredLine)
        tokens, dimensions = self.recipe.eval.batch_tokens, self.method.dimensions
        decides: dict[str, Json] = {
            "measured": need,
            **about,
            "rows_sha256": record_rows(part.rows)["sha256"],
            "features_sha256": _sum_of_features(part.rows),
            "batch_tokens": tokens,
            **({"dimensions": dimensions, "seed": self.seed} if need == "gradients" else {}),
        }
        try:
            with stop.held():
                file.open(decides, len(part.rows))
            for values in measure_rows(
                model,
                part.rows,
                need,
                batch_tokens=tokens,
                pad_id=self.text.pad_id,
                dimensions=dimensions,
                seed=self.seed,
                done=file.done,
                progress=self.progress,
                where=part.where,
            ):
                with stop.held():
                    file.append([_line(file.written + k, one) for k, one in enumerate(values)])
        finally:
            file.close()
        return _read(file)


def _sum_of_features(rows: Sequence[Encoded]) -> str | None:
    """Of what a model that goes by features of rows reads beside their tokens; None where there is nothing."""
    found: list[Json] = [list(row.features) for row in rows]
    return sum_of(found) if any(found) else None


def _line(row: int, values: Tensor) -> dict[str, Json]:
    held = values.numpy().astype("<f4").tobytes()
    return {"row": row, VALUES: base64.b64encode(held).decode()}


def _read(file: AnswersFile) -> Tensor:
    """All lines as (rows, numbers).

    Raises:
        UsageError: one was changed.
    """
    found = []
    for number, line in enumerate(file.lines(), 1):
        stop.poll()
        try:
            held = base64.b64decode(line[VALUES], validate=True)
            found.append(torch.from_numpy(np.frombuffer(held, "<f4").copy()))
        except ValueError as error:
            raise UsageError(
                f"{file.path}:{number}: is not what was measured of a row; remove the file"
            ) from error
        if not found[-1].isfinite().all():
            raise UsageError(f"{file.path}:{number}: holds numbers that are not finite; remove the file")
    if len({len(one) for one in found}) != 1:
        raise UsageError(f"{file.path}: its lines hold different counts of numbers; remove the file")
    return torch.stack(found)
