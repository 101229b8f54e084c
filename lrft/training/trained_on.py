"""What a run trained on, as sums: compared wherever the run is gone on with, scored, merged or exported.

The short form, a sum for each part, is in the manifest of every checkpoint, and decides. The long one, in run.json,
says what of a part changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lrft.model.decisive import sum_of
from lrft.model.weight_sums import WeightSums
from lrft.registry.json import Json, to_section

KEY = "trained_on"  # in run.json and in a manifest


@dataclass(frozen=True)
class TrainedOn:
    """The parts that were looked at; one that was not is empty or None.

    Attributes:
        model: the recipe's `model.name`, for messages.
        tokenizer_of: what the tokenizer is of.
        config: decisive fields of config.json.
        tokenizer: sums of its parts.
        template: sum of the chat template; None where no row is written by one.
        data: fingerprint of each split's files or hub sets together.
        files: of each split, the fingerprint of each by its origin.
        rows: of each split, what `record_rows` makes of the encoded rows.
        base: sums of the weights.
    """

    model: str
    tokenizer_of: str
    config: Mapping[str, Json]
    tokenizer: Mapping[str, str] = field(default_factory=dict)
    template: str | None = None
    data: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    rows: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)
    base: WeightSums | None = None

    def record(self) -> dict[str, Json]:
        """The long form."""
        base: dict[str, Json] = {}
        if self.base is not None:
            sums = self.base
            base = {"sha256": sums.whole, "tensors": len(sums.each), "digits": sums.digits}
        return {
            "config": dict(self.config),
            "tokenizer": dict(self.tokenizer),
            "template": self.template,
            "data": dict(self.data),
            "files": {split: dict(sums) for split, sums in self.files.items()},
            "rows": {split: dict(rows) for split, rows in self.rows.items()},
            "base": base,
        }

    def sums(self) -> dict[str, str]:
        """The short form."""
        return sums_of(self.record())


def sums_of(record: Mapping[str, Json]) -> dict[str, str]:
    """The short form of a long one; a part that it has not, or that is empty, is left out."""
    found = {part: sum_of(record[part]) for part in ("config", "tokenizer") if record.get(part)}
    if template := record.get("template"):
        found["template"] = str(template)
    for split, data in to_section(record.get("data")).items():
        found[f"data.{split}"] = str(data)
    for split, rows in to_section(record.get("rows")).items():
        found[f"rows.{split}"] = str(to_section(rows).get("sha256"))
    if base := to_section(record.get("base")):
        found["base"] = str(base.get("sha256"))
    return found


@dataclass(frozen=True)
class Before:
    """What was recorded of a run.

    Attributes:
        record: the long form; empty in older runs.
        sums: the short form of the checkpoint that is gone on from, or of the record where there is none.
        versions: under which that checkpoint was made.
    """

    record: Mapping[str, Json]
    sums: Mapping[str, str]
    versions: Mapping[str, str | None]

    @property
    def known(self) -> bool:
        """Whether more was recorded than fingerprints of data files."""
        return any(not part.startswith("data.") for part in self.sums)


def read_before(run: Mapping[str, Json], manifest: Mapping[str, Json] | None) -> Before:
    """What run.json and the manifest of a checkpoint say.

    Args:
        run: what run.json holds. Older ones hold no more of this than the fingerprints of `data`.
        manifest: None where no checkpoint was saved yet.
    """
    record = to_section(run.get(KEY)) or {"data": run.get("data")}
    sums = sums_of(record)
    versions = to_section(run.get("versions"))
    if manifest is not None:
        sums |= {part: str(found) for part, found in to_section(manifest.get(KEY)).items()}
        versions = to_section(manifest.get("versions")) or versions
    named = {name: None if found is None else str(found) for name, found in versions.items()}
    return Before(record, sums, named)


def changed_parts(before: Before, now: TrainedOn) -> list[str]:
    """The parts that are known of both and differ, causes before what follows from them."""
    found = now.sums()
    return [part for part in found if part in before.sums and before.sums[part] != found[part]]
