"""The fixed conversation as each target of a folder renders it, beside what training saw."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path

from lrft.data.chat import ChatTemplate
from lrft.data.seam import token_ids
from lrft.export import go_template
from lrft.export.as_trained import Rendered
from lrft.export.checks import Check, check
from lrft.export.conversation import difference, write
from lrft.export.modelfile import MODELFILE, stops_of, template_of
from lrft.model.gguf_tokens import gguf_stops, gguf_tokenizer
from lrft.model.stopping import generation_of, read_tokenizer
from lrft.registry.errors import DataError
from lrft.registry.protocols import Tokenizer

TOKENIZERS = ("tokenizer.json", "tokenizer_config.json")
MODEL, GENERATION = "model.gguf", "generation_config.json"


def hear(folder: Path, expected: Rendered, stops: list[str] | None, trusted: bool = False) -> Iterator[Check]:
    """A check for the folder's tokenizer, for its GGUF model and for its Modelfile, each where it is there.

    Args:
        expected: as training rendered it.
        stops: the texts that ended an answer in training, or None where that is not known.
    """
    spoken: Tokenizer | None = None
    if any((folder / name).is_file() for name in TOKENIZERS):
        spoken = read_tokenizer(folder, trusted)
        yield _rendered("the tokenizer's", spoken, expected)
        if stops is not None and (folder / GENERATION).is_file():
            yield check(f"{GENERATION}'s stops are those of training", _unlike(_ends(folder, spoken), stops))
    if (folder / MODEL).is_file():
        try:
            spoken = gguf_tokenizer(folder / MODEL)
        except ValueError as error:
            yield check("the GGUF file's tokenizer can be read", [error])
        else:
            yield _rendered("the GGUF file's", spoken, expected)
            if stops is not None:
                ends = sorted(map(str, spoken.convert_ids_to_tokens(sorted(gguf_stops(folder / MODEL)))))
                yield check("the GGUF file's stops are those of training", _unlike(ends, stops[:3]))
    if (folder / MODELFILE).is_file():
        yield from _modelfile((folder / MODELFILE).read_text(encoding="utf-8"), spoken, expected, stops)


def _ends(folder: Path, tokenizer: Tokenizer) -> list[str]:
    """What transformers and servers stop at by the folder's generation settings."""
    said = generation_of(folder).eos_token_id
    ids = said if isinstance(said, list) else [] if said is None else [said]
    return [str(text) for text in tokenizer.convert_ids_to_tokens(ids)]


def _rendered(whose: str, tokenizer: Tokenizer, expected: Rendered) -> Check:
    """The conversation by a tokenizer and its own template."""
    name = f"{whose} tokens of the conversation are those of training"
    if not expected["messages"]:
        return check(name, _parts(tokenizer, expected, expected["text"]))
    day = None if expected["date"] is None else date.fromisoformat(expected["date"])
    stop = tokenizer.eos_token_id
    template = ChatTemplate(tokenizer, set() if stop is None else {stop}, day or date.today())
    try:
        text = write(template, expected["messages"])
    except DataError as error:
        return check(name, [error])
    return check(name, _parts(tokenizer, expected, text))


def _modelfile(
    text: str, spoken: Tokenizer | None, expected: Rendered, stops: list[str] | None
) -> Iterator[Check]:
    name = "the Modelfile's prompt is that of training"
    template = template_of(text)
    if template is None:
        yield check(name, ["it holds no TEMPLATE"])
        return
    try:
        found = go_template.render(template, expected["messages"], expected["text"])
    except ValueError as error:
        yield check(name, [f"its template is not one of ours: {error}"])
    else:
        wrong = _parts(spoken, expected, found) if spoken is not None else _texts(expected["text"], found)
        yield check(name, wrong)
    if stops is not None:
        yield check("the Modelfile's stops are those of training", _unlike(sorted(stops_of(text)), stops))


def _parts(tokenizer: Tokenizer, expected: Rendered, text: str) -> list[str]:
    found = difference(tokenizer, expected["ids"], token_ids(tokenizer, text))
    return [found] if found else []


def _texts(expected: str, found: str) -> list[str]:
    if expected == found:
        return []
    pairs = zip(expected, found, strict=False)
    place = next((k for k, (a, b) in enumerate(pairs) if a != b), min(len(expected), len(found)))
    return [
        f"character {place} begins {found[place : place + 20]!r} and was {expected[place : place + 20]!r}"
    ]


def _unlike(found: list[str], expected: list[str]) -> list[str]:
    return [] if sorted(found) == sorted(expected) else [f"{', '.join(found)} and not {', '.join(expected)}"]
