"""What the tables and plots of docs/performance.md say of a record: its kind, its work, its sides, its figures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from generated import table

Record = dict[str, Any]
Row = tuple[str, ...]
NAMES = {"lrft": "lrft", "peft": "PEFT", "trl": "TRL"}


def shown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, or nothing where there is nothing to show."""
    return table(heads, rows) if rows else ""


def pairings(found: Sequence[Record]) -> Iterator[tuple[Record, dict[str, Any]]]:
    """Every pairing of training steps that has a figure, with its record; those of curves stand with the curve."""
    for record in of_kind(found, "train"):
        for pair in record["result"].get("pairings", ()):
            if pair["ratio"] is not None:
                yield record, pair


def of_kind(found: Sequence[Record], kind: str) -> list[Record]:
    """The records of one benchmark."""
    return [record for record in found if record["kind"] == kind]


def work(record: Record) -> str:
    """What a step was made of."""
    settings = record["settings"]
    model = name_of(settings["model"])
    if settings["gsm8k"]:
        return f"{model}, {settings['examples']} examples of GSM8K a step: packed by lrft, padded by a peer"
    return f"{model}, {settings['rows']} x {settings['length']} random tokens, every position learnt"


def name_of(model: str) -> str:
    """A model without its owner and its storage."""
    return re.sub(r"(\.Q\w+)?\.gguf$", "", model.rpartition("/")[2])


def method(side: str, record: Record) -> str:
    """The method of a side with the settings that are not the usual ones."""
    settings = record["settings"]
    words = [f"`{side.rpartition(':')[2]}`", f"rank {settings['rank']}", settings["quantization"]]
    words += [f"dropout {settings['dropout']:g}"] if settings["dropout"] else []
    words += [f"{settings['adapted']} layers"] if settings["adapted"] else []
    words += ["checkpointing"] if settings["checkpointing"] else []
    return ", ".join(words)


def label(side: str) -> str:
    """`peft:lora` as PEFT lora; of generation, `peft bare` as it is."""
    library, _, name = side.partition(":")
    return f"{NAMES[library]} {name}" if name else side


def spread(ratio: dict[str, float]) -> str:
    """Median, least and most."""
    return f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"


def source(record: Record) -> str:
    """The record's number and day."""
    return f"{record['number']}, {record['date']}"


def over_lora(ratio: dict[str, float]) -> dict[str, float]:
    """LoRA's time over a method's -> the method's over LoRA's."""
    return {"median": 1 / ratio["median"], "min": 1 / ratio["max"], "max": 1 / ratio["min"]}
