"""What of a run's files changed since it began, in words: which file, which of its parts, from what to what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from lrft.data.row_sums import first_changed
from lrft.registry.json import Json, to_section
from lrft.training.trained_on import Before, TrainedOn

SHORT = 12  # digits of a sum that is shown
VALUE = 60  # characters of a value that are shown
MOST = 3  # changes of a kind that are named
ABSENT = "absent"
CAUSES = ("data.", "tokenizer", "template")  # of which other encoded rows may be no more than the effect
PARTS = {
    "vocab": "its vocabulary",
    "merges": "its merges",
    "added_tokens": "its added tokens",
    "normalizer": "its normalizer",
    "pre_tokenizer": "how it splits words",
    "post_processor": "what it puts around a text",
    "decoder": "its decoder",
    "model": "the settings of its model",
    "special_tokens": "its special tokens",
    "stop_tokens": "the tokens that end an answer (generation_config.json)",
}


def describe(parts: Sequence[str], before: Before, now: TrainedOn) -> str:
    """One phrase for the parts, such as `config.json of X (rope_theta: 10000.0 -> 500000.0)`."""
    caused = any(part.startswith(CAUSES) for part in parts)
    shown = [part for part in parts if not (caused and part.startswith("rows."))]
    return "; ".join(_phrase(part, before, now) for part in shown)


def _phrase(part: str, before: Before, now: TrainedOn) -> str:
    kind, _, split = part.partition(".")
    was, found = before.sums[part], now.sums()[part]
    sums = f"sha256 {was[:SHORT]} -> {found[:SHORT]}"
    if kind == "config":
        return f"config.json of {now.model} ({_fields(before, now) or sums})"
    if kind == "tokenizer":
        return f"the tokenizer of {now.tokenizer_of} ({_tokenizer(before, now) or sums})"
    if kind == "template":
        return f"the chat template of {now.tokenizer_of} ({sums})"
    if kind == "data":
        return f"the rows of data.{split} ({_files(split, before, now) or sums})"
    if kind == "rows":
        return f"the tokens and masks of data.{split}{_rows(split, before, now)} ({sums})"
    return f"the weights of model.name {now.model} ({_tensors(before, now)}{sums}: another base model)"


def _fields(before: Before, now: TrainedOn) -> str:
    return _several(_between(to_section(before.record.get("config")), now.config, VALUE))


def _tokenizer(before: Before, now: TrainedOn) -> str:
    was, found = to_section(before.record.get("tokenizer")), now.tokenizer
    return _several(_between(_in_words(was), _in_words(found)))


def _in_words(parts: Mapping[str, Json]) -> dict[str, Json]:
    return {PARTS.get(name, name): found for name, found in parts.items()}


def _files(split: str, before: Before, now: TrainedOn) -> str:
    was = to_section(to_section(before.record.get("files")).get(split))
    return _several(_between(was, now.files.get(split, {})))


def _rows(split: str, before: Before, now: TrainedOn) -> str:
    """Where the rows first differ, or how many there are."""
    was, found = to_section(to_section(before.record.get("rows")).get(split)), now.rows[split]
    if not was:
        return ""
    if was.get("rows") != found["rows"]:
        return f", {was.get('rows')} rows before and {found['rows']} now"
    place = first_changed(int(str(found["rows"])), str(was.get("digits")), str(found["digits"]))
    if place is None:
        return ""
    first, last = place
    return f", first in row {first}" if first == last else f", first in rows {first} to {last}"


def _tensors(before: Before, now: TrainedOn) -> str:
    """The tensors that changed."""
    assert now.base is not None, "compared"
    digits = to_section(before.record.get("base")).get("digits")
    names = [] if digits is None else now.base.changed(str(digits))
    if not names:
        return ""
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return f"{', '.join(names[:MOST])}{more}, of {len(now.base.each)} tensors; "


def _between(before: Mapping[str, Json], now: Mapping[str, Json], longest: int = SHORT) -> Iterator[str]:
    """`KEY: OLD -> NEW` of every key that differs, each cut to its beginning; nothing where nothing was recorded."""
    if not before:
        return
    for key in dict.fromkeys([*before, *now]):
        was, found = (str(values[key])[:longest] if key in values else ABSENT for values in (before, now))
        if key not in before or key not in now or before[key] != now[key]:
            yield f"{key}: {was} -> {found}"


def _several(found: Iterator[str]) -> str:
    all_of_them = list(found)
    more = f" and {len(all_of_them) - MOST} more" if len(all_of_them) > MOST else ""
    return ", ".join(all_of_them[:MOST]) + more
