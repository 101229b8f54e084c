"""Encoded rows and the gate's report, for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from itertools import groupby
from typing import Any

from rich.text import Text

from lrft.data.encoded import Encoded
from lrft.data.gate_report import GateReport
from lrft.registry.json import Json
from lrft.registry.protocols import Tokenizer

LEARNT = "bold black on green"
MARKS = ("⟦", "⟧")
ANSWERS = ("chosen", "rejected")  # of a pair
GRADED = ("answer", "reply")  # of a row that asks whether its answer is right
EMBEDDED = ("query", "positive")  # of texts to embed; hard negatives follow


def runs(encoded: Encoded) -> list[tuple[list[int], bool]]:
    """(token ids, is learnt) of each run of tokens under the same mask; of a text to embed the last token is."""
    mask = encoded.supervised
    if encoded.embedded:
        mask = [at == len(encoded.input_ids) for at in range(1, len(encoded.input_ids) + 1)]
    found, start = [], 0
    for learnt, run in groupby(mask):
        end = start + len(list(run))
        found.append((encoded.input_ids[start:end], learnt))
        start = end
    return found


def spans(encoded: Encoded, tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    """(text, is learnt) of each run of tokens under the same mask; together they are the whole document."""
    found = []
    end, shown = 0, 0
    for ids, learnt in runs(encoded):
        end += len(ids)
        # Decoded from the front, since some tokenizers drop the space before the first word they decode.
        text = tokenizer.decode(encoded.input_ids[:end], clean_up_tokenization_spaces=False)
        found.append((text[shown:], learnt))
        shown = len(text)
    return found


def part_names(encoded: Encoded) -> tuple[str, ...]:
    """What the documents of a row are called."""
    if encoded.embedded:
        return (*EMBEDDED, *(f"negative {k + 1}" for k in range(len(encoded.parts) - 2)))
    return ANSWERS if encoded.wanted is None else GRADED


def masked_text(encoded: Encoded, tokenizer: Tokenizer, colour: bool) -> Text:
    """The row as text, what is learnt highlighted, or between marks where there is no colour.

    Of a pair both answers are shown, each with its prompt; of texts to embed all.
    """
    return _shown(encoded, lambda document: spans(document, tokenizer), colour)


def with_label(shown: Text, label: str, colour: bool) -> Text:
    """The row with its label behind it, which is what is learnt of it."""
    shown.append(" ")
    return shown.append(label, style=LEARNT) if colour else shown.append(MARKS[0] + label + MARKS[1])


def masked_ids(encoded: Encoded, colour: bool) -> Text:
    """The same as token ids."""

    def written(document: Encoded) -> list[tuple[str, bool]]:
        texts = [(" ".join(map(str, ids)), learnt) for ids, learnt in runs(document)]
        return [piece for text in texts for piece in ((" ", False), text)][1:]

    return _shown(encoded, written, colour)


def facts(report: GateReport) -> list[tuple[str, str]]:
    """The report, a line a fact; kinds of problems that did not occur are left out."""
    lines = [
        ("pairs" if report.pairs else "rows", f"{report.rows:,}"),
        ("tokens", f"{report.tokens:,}"),
        ("texts embedded", f"{report.supervised:,}")
        if report.embedded
        else ("learnt", f"{report.supervised:,} ({report.supervised_share:.1%})"),
        (
            "pair length" if report.pairs else "row length",
            f"median {report.length_p50}, 95 % at most {report.length_p95}, longest {report.length_max}, "
            f"limit {report.max_length}",
        ),
        ("stop tokens", " ".join(report.stop_tokens)),
    ]
    kinds = {
        "too_long": "longer than the limit",
        "dropped": "dropped",
        "truncated": "truncated",
        "stops_cut": "stop token cut off",
        "without_target": "nothing to learn",
        "empty_answers": "empty answer",
        "without_stop": "no stop token",
        "stops_within": "answer goes on after a stop token",
        "wrong_bos": "wrong beginning-of-text count",
        "merged": "prompt and answer share a token",
        "apart": "answer encoded apart from its prompt",
        "left_out": "text left out or altered by the template",
        "duplicates": "duplicates",
        "equal_answers": "both answers equal",
    }
    for kind, label in kinds.items():
        count = getattr(report, kind)
        if count:
            lines.append((label, f"{count:,} (first: {', '.join(report.first[kind])})"))
    if report.unwritten:
        lines.append(("not in the text", _counted(report.unwritten)))
    if report.unread:
        lines.append(("not read", _counted(report.unread)))
    return lines


def recorded_facts(record: Mapping[str, Json]) -> list[tuple[str, str]]:
    """The same of a report as its `record` gave it."""
    counts: dict[str, Any] = {
        field.name: record[field.name] for field in fields(GateReport) if field.name in record
    }
    return facts(GateReport(**counts))


def share_fact(share: Mapping[str, Json]) -> tuple[str, str]:
    """What `Share.record` says of a source, for people."""
    told: dict[str, Any] = dict(share)
    if "one_step_of" in told:
        return f"source {told['source']}", f"{told['rows']:,} rows, of one step in {told['one_step_of']}"
    return (
        f"source {told['source']}",
        f"{told['rows']:,} rows, {told['rows_of_an_epoch']:,} an epoch ({told['share']:.1%} of it), each "
        f"{told['repeats']:.3g} times",
    )


def _counted(names: dict[str, int]) -> str:
    return ", ".join(f"{name} ({count:,})" for name, count in names.items())


def _shown(encoded: Encoded, written: Callable[[Encoded], list[tuple[str, bool]]], colour: bool) -> Text:
    """What `written` makes of each document, what is learnt marked."""
    shown = Text()
    for number, document in enumerate(encoded.documents()):
        if encoded.parts:
            line = "\n" if number else ""
            shown.append(f"{line}{part_names(encoded)[number]}: ", style="bold" if colour else "")
        for text, learnt in written(document):
            if not learnt:
                shown.append(text, style="dim" if colour else "")
            elif colour:
                shown.append(text, style=LEARNT)
            else:
                shown.append(MARKS[0] + text + MARKS[1])
    return shown
