"""The rows of a recipe as they are trained on and scored, and what the data gate says of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from lrft.data.encode import encode_each
from lrft.data.encoded import Encoded
from lrft.data.features import counted
from lrft.data.gate_report import SCORED_WHOLE, GateReport
from lrft.data.mix import Mixture
from lrft.data.removal import Removal, removal_facts
from lrft.data.replies import reply_tokens
from lrft.data.rows import Rows, placed
from lrft.data.show import recorded_facts, share_fact
from lrft.data.sources import read_rows
from lrft.data.tokenize import Renderer
from lrft.recipe.schema import Recipe
from lrft.registry.axes import OBJECTIVES
from lrft.registry.config import Source
from lrft.registry.errors import DataError, RecipeError
from lrft.registry.json import Json, to_list, to_section
from lrft.registry.protocols import Tokenizer


@dataclass
class Text:
    """Tokenizer and rows of a recipe, rendered and checked.

    Attributes:
        train: encoded training rows; empty where only evaluation is wanted.
        mixture: how several sources of them share an epoch; None where there is one.
        removed: what was left out of the training rows; None where nothing is asked to be.
        seed: of the rows that `take` draws.
        report: what the data gate found in them.
        rows: the training rows as they were read, one for each of `train`; None where only evaluation is wanted.
        held_out: rows of `data.eval`, or those that `data.split` takes, or None.
        scored: those rows encoded; None where only evaluation is wanted.
        scored_of: for each of `scored`, which of the held-out rows it is: several where a document has windows.
        scored_rows: the held-out rows, one for each of `scored`.
        held_out_report: what the data gate found in those; None where only evaluation is wanted.
        overlap: where the first held-out rows are that stand among the training rows too, and how many there are.
    """

    tokenizer: Tokenizer
    stop_ids: set[int]
    pad_id: int
    renderer: Renderer
    train: Sequence[Encoded] = ()
    report: GateReport | None = None
    rows: Rows | None = None
    held_out: Rows | None = None
    held_out_report: GateReport | None = None
    overlap: tuple[int, tuple[str, ...]] = (0, ())
    fingerprints: dict[str, str] = field(default_factory=dict)
    scored: Sequence[Encoded] | None = None
    scored_of: Sequence[int] = ()
    scored_rows: Rows | None = None
    mixture: Mixture | None = None
    removed: Removal | None = None
    seed: int = 0

    def held_out_encoded(self, limit: int | None = None) -> list[Encoded]:
        """The first held-out rows, encoded; rows that are too long are left out.

        Args:
            limit: only so many rows, of several sources so many of each.
        """
        return [encoded for rows in self.held_out_by_source(limit).values() for encoded in rows]

    def held_out_by_source(self, limit: int | None = None) -> dict[str, list[Encoded]]:
        """The same by source, in the order of the sources; under an empty name where there is one."""
        if self.held_out is None:
            return {}
        kept = self.held_out.first_indices(limit)
        encoded: Sequence[Encoded]
        if self.scored is None:
            encoded, of = encode_each(self.held_out.chosen(kept), self.renderer)
            of = [kept[k] for k in of]
        else:
            encoded, of = self.scored, self.scored_of
        wanted = set(kept)
        found: dict[str, list[Encoded]] = {name: [] for name in self.held_out.sources or ("",)}
        names = list(found)
        for one, index in zip(encoded, of, strict=True):
            if index in wanted and not one.dropped and one.targets:
                found[names[self.held_out.source(index)]].append(one)
        return {name: rows for name, rows in found.items() if rows}

    def check_vocabulary(self, size: int) -> None:
        """Refuse token ids that a model of `size` embeddings does not know, which another model's tokenizer may give.

        Raises:
            RecipeError: names the first row that has one.
        """
        for split, rows in (("training", self.train), ("held-out", self.scored or [])):
            for index, row in enumerate(rows):
                if max(row.input_ids, default=0) >= size:
                    found = f"{split} row {index} has token {max(row.input_ids)}, and the model knows {size}"
                    raise RecipeError(f"{found}; give a tokenizer of fewer", "model.tokenizer")

    def facts(self) -> list[tuple[str, str]]:
        """What the gate found in either split, a line a fact, for people."""
        return fact_lines(self.record())

    def record(self) -> dict[str, Json]:
        """The same as plain values: the gate's record of the training rows, and that of the held-out ones in it."""
        return {
            **({} if self.report is None else self.report.record()),
            "held_out": None if self.held_out_report is None else self.held_out_report.record(),
            "rows_in_both_splits": self.overlap[0],
            "first_in_both_splits": list(self.overlap[1]),
            "date": self.renderer.today.isoformat(),
            "asks_for_the_date": self.renderer.asks_for_the_date,
            **({} if self.removed is None else {"removed": self.removed.record()}),
            **(
                {} if self.mixture is None else {"sources": [share.record() for share in self.mixture.shares]}
            ),
            **(
                {"features": counted(row.features for row in self.train)}
                if self.renderer.features.columns
                else {}
            ),
        }

    def learnt(self) -> tuple[Rows, list[Encoded]]:
        """The training rows with something to learn, as they were read and encoded."""
        assert self.rows is not None, "training rows were wanted"
        kept = [k for k, row in enumerate(self.train) if not row.dropped and row.targets]
        return self.rows.chosen(kept), [self.train[k] for k in kept]

    def encoded(self, source: Source, key: str) -> list[Encoded]:
        """The rows of another source in the recipe's format; rows that are too long are left out.

        Raises:
            DataError: nothing is left, at the recipe's `key`.
        """
        return self.usable(read_rows(source, "train", self.seed, key), key)

    def usable(self, rows: Rows, key: str, limit: int | None = None) -> list[Encoded]:
        """The rows with something to learn within `max_length`, encoded.

        Args:
            key: of the recipe, that the rows come from.
            limit: only so many, the first ones; no more are encoded than that takes.

        Raises:
            DataError: there are none.
        """
        found = list(islice(self._usable(rows), limit))
        if not found:
            raise DataError(f"{key}: no row has a token to learn within train.max_length")
        return found

    def _usable(self, rows: Rows) -> Iterator[Encoded]:
        for index, row in enumerate(rows):
            with placed(rows, index):
                made = self.renderer.encodings(row)
            for encoded in made:
                if (
                    not encoded.dropped
                    and encoded.targets
                    and len(encoded.input_ids) <= self.renderer.max_length
                ):
                    yield encoded


def fact_lines(record: Mapping[str, Json]) -> list[tuple[str, str]]:
    """What `Text.record` says, a line a fact, for people."""
    found = recorded_facts(record) if "rows" in record else []
    if removed := to_section(record.get("removed")):
        found += removal_facts(removed)
    found += [share_fact(to_section(share)) for share in to_list(record.get("sources"))]
    if held_out := to_section(record["held_out"]):
        found += [(f"held-out {label}", value) for label, value in recorded_facts(held_out)]
    if features := to_section(record.get("features")):
        found.append(("features", ", ".join(f"{name} ({rows:,} rows)" for name, rows in features.items())))
    if record["asks_for_the_date"]:
        found.append(("date the template writes", str(record["date"])))
    if isinstance(both := record["rows_in_both_splits"], int) and both:
        first = ", ".join(map(str, to_list(record["first_in_both_splits"])))
        found.append(("rows in both splits", f"{both:,} (first: {first})"))
    return found


def check_text(text: Text, recipe: Recipe) -> None:
    """The gate: stop unless both splits can be used as the recipe says.

    Raises:
        DataError: every reason, with numbers, the first rows it concerns, and what to set (exit code 3).
    """
    assert text.report is not None, "only evaluation was wanted"
    text.report.check(recipe.data.allow_empty_targets, recipe.data.too_long)
    if "replies" in OBJECTIVES.declared(recipe.objective.method).provides and text.rows is not None:
        reply_tokens(text.renderer, text.rows[0])
    if text.held_out_report is not None:
        # A held-out row may be longer than train.max_length, and one without a target is left out and counted.
        text.held_out_report.check(True, SCORED_WHOLE, "data.eval")
        if not text.held_out_encoded(recipe.eval.limit):
            raise DataError("data.eval: no row has a token to score; check data.format and data.too_long")
