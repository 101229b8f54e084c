"""What of a model's files decides numbers beside its weights: the configuration, the tokenizer, the chat template."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from lrft.model import gguf
from lrft.model.files import resolve
from lrft.model.opening import opening
from lrft.recipe.sections import ModelSection
from lrft.registry.json import Json
from lrft.registry.protocols import Tokenizer
from lrft.registry.templates import as_first_written

# Keys of config.json that say who wrote it and how it was kept: `model.dtype` decides the precision.
SAID_OTHERWISE = {
    "_name_or_path",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
OF_A_CALL = {
    "version",
    "truncation",
    "padding",
}  # of a serialised tokenizer: the format, and how it was last called
DIGITS = 16  # of the sum of a part of a tokenizer


def decisive_fields(section: ModelSection) -> dict[str, Json]:
    """The keys of the model's config.json that decide what it computes, dotted, as the file has them.

    With them the sums of the files of a local model that brings its own code. Of a GGUF file, whose configuration is
    derived from it, the digest of the file.

    Raises:
        RecipeError: it cannot be read.
    """
    from transformers import PretrainedConfig

    name, options = resolve(section.name, section.revision)
    if gguf.locate(section.name) is not None:
        return {"gguf": name.rpartition("-")[2]}
    with opening(section.name):
        found, _ = PretrainedConfig.get_config_dict(name, **options)
    plain = {key: value for key, value in _flat(found, "") if not key.startswith("_")}
    fields = {key: value for key, value in plain.items() if not SAID_OTHERWISE & {*key.split(".")}}
    return fields | (_code(Path(name)) if "auto_map" in found else {})


def tokenizer_sums(tokenizer: Tokenizer, stops: set[int]) -> dict[str, str]:
    """sha256, shortened, of everything that decides which tokens a text becomes and which of them end one, by part.

    Args:
        stops: tokens that end a generation.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts: dict[str, Json] = {}
    if backend is not None and hasattr(backend, "to_str"):
        held = json.loads(backend.to_str())
        model = held.pop("model")
        parts = {key: value for key, value in held.items() if key not in OF_A_CALL}
        parts |= {key: model.pop(key) for key in ("vocab", "merges") if key in model}
        parts["model"] = model
    else:  # one in Python, whose rules are its class
        parts["class"] = type(tokenizer).__name__
        parts["vocab"] = sorted([token, number] for token, number in tokenizer.get_vocab().items())
        parts["added_tokens"] = {
            str(number): [str(token), token.special]
            for number, token in tokenizer.added_tokens_decoder.items()
        }
    special = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    parts["special_tokens"] = [*special, tokenizer.unk_token]
    parts["stop_tokens"] = sorted(stops)
    return {name: sum_of(part)[:DIGITS] for name, part in sorted(parts.items())}


def template_sum(tokenizer: Tokenizer) -> str | None:
    """sha256 of the chat template in force; None where there is none."""
    template = tokenizer.chat_template
    if not template:
        return None
    return sum_of(as_first_written(template) if isinstance(template, str) else template)


def sum_of(value: Json) -> str:
    """sha256 of a plain value."""
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()


def _code(folder: Path) -> dict[str, Json]:
    """The sum of every file of code in a folder, by its name; none of a model of the hub, whose revision says it."""
    return {
        f"code {path.name}": sum_of(path.read_text("utf-8", "replace"))
        for path in sorted(folder.glob("*.py"))
    }


def _flat(value: Json, key: str) -> Iterator[tuple[str, Json]]:
    if isinstance(value, dict) and value:
        for name, inside in value.items():
            yield from _flat(inside, f"{key}.{name}" if key else name)
        return
    yield key, value
