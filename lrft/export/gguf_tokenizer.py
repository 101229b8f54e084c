"""A byte-level BPE tokenizer as GGUF metadata: what llama.cpp cuts text into is what training saw."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lrft.core.notes import say
from lrft.data.tokenize import Renderer
from lrft.export.conversation import in_order
from lrft.model.gguf_tokens import CONTROL, DIGITS, SPLITS, USER_DEFINED
from lrft.model.tokenizer import is_left_out
from lrft.registry.errors import UsageError
from lrft.registry.protocols import Tokenizer

NORMAL, UNUSED = 1, 5  # gguf.TokenType


@dataclass(frozen=True)
class Spoken:
    """What a server has to know of the tokens.

    Attributes:
        stop_ids: what ends an answer, the tokenizer's own eos first.
        add_bos: whether the text that training saw begins with the bos token.
        template: the chat template, or None.
    """

    tokenizer: Tokenizer
    stop_ids: list[int]
    pad_id: int
    add_bos: bool
    template: str | None


def spoken_of(renderer: Renderer, stop_ids: set[int], pad_id: int, chat: bool, command: str) -> Spoken:
    """What training's own tokenizer and template say.

    Args:
        chat: whether rows are rendered by the template.
        command: what to call the command in notes.
    """
    tokenizer = renderer.tokenizer
    bos = tokenizer.bos_token_id
    # A template writes the token itself, and servers would put a second one before it.
    begins = not chat and bos in renderer.drawing.prefix
    template = tokenizer.chat_template
    if isinstance(template, dict):
        say(f"{command}: the tokenizer has {len(template)} chat templates; the one called default is written")
        template = template.get("default")
    stops = in_order(tokenizer, stop_ids)
    return Spoken(tokenizer, stops, pad_id, bos is not None and begins, template)


def write_tokenizer(writer: Any, spoken: Spoken, rows: int, command: str) -> list[str]:
    """Write vocabulary, merges, special ids and the chat template; returns what the user has to be told.

    Args:
        writer: a `gguf.GGUFWriter`.
        rows: of the input embedding; what the tokenizer leaves empty is filled up.

    Raises:
        UsageError: llama.cpp has no tokenizer that does the same.
    """
    tokenizer = spoken.tokenizer
    inner, pre = _inner(tokenizer, command)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    texts, kinds = _tokens(tokenizer, rows)
    writer.add_token_list(texts)
    writer.add_token_types(kinds)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in inner["model"]["merges"]])
    pad = spoken.pad_id if is_left_out(tokenizer, spoken.pad_id) else None
    for name, token in (("bos", tokenizer.bos_token_id), ("pad", pad)):
        if token is not None and token < rows:
            getattr(writer, f"add_{name}_token_id")(token)
    for name, token in zip(("eos", "eot", "eom"), spoken.stop_ids, strict=False):
        getattr(writer, f"add_{name}_token_id")(token)
    writer.add_add_bos_token(spoken.add_bos)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    if spoken.template is not None:
        writer.add_chat_template(spoken.template)
    return [*_stops_left_out(spoken), *_normalizing(inner)]


def _inner(tokenizer: Tokenizer, command: str) -> tuple[dict[str, Any], str]:
    """What the tokenizers library holds, and llama.cpp's name of how it splits text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    inner: dict[str, Any] = {} if backend is None else json.loads(backend.to_str())
    model = inner.get("model") or {}
    told = "llama.cpp's convert_hf_to_gguf.py on the folder of `lrft merge` may know it"
    if model.get("type") != "BPE" or model.get("byte_fallback") or model.get("continuing_subword_prefix"):
        kind = model.get("type", "unknown") + (" with bytes apart" if model.get("byte_fallback") else "")
        raise UsageError(
            f"{command}: a tokenizer of the kind {kind} is not written here (byte-level BPE is); {told}"
        )
    split = _split(inner.get("pre_tokenizer"))
    pre = None if split is None else SPLITS.get((split, bool(model.get("ignore_merges"))))
    if pre is None:
        shown = json.dumps(inner.get("pre_tokenizer"))[:120]
        raise UsageError(
            f"{command}: llama.cpp has no name known here for how text is split ({shown}); {told}"
        )
    return inner, pre


def _split(pre: dict[str, Any] | None) -> str | None:
    """What text is split by before merging, as `SPLITS` has it; None where that is none of them."""
    steps = [] if pre is None else pre["pretokenizers"] if pre["type"] == "Sequence" else [pre]
    if not steps or steps[-1]["type"] != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    *before, last = steps
    if not before:
        return "" if last.get("use_regex", True) else None
    if len(before) > 1:
        return None
    (first,) = before
    if first["type"] == "Digits" and first.get("individual_digits") and last.get("use_regex", True):
        return DIGITS
    plain = first["type"] == "Split" and first.get("behavior") == "Isolated" and not first.get("invert")
    if plain and not last.get("use_regex", True):
        expression: str | None = first["pattern"].get("Regex")
        return expression
    return None


def _tokens(tokenizer: Tokenizer, rows: int) -> tuple[list[str], list[int]]:
    """Text and kind of every row of the embedding."""
    by_id = {index: text for text, index in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    texts, kinds = [], []
    for index in range(rows):
        texts.append(by_id.get(index, f"[PAD{index}]"))
        if index not in by_id:
            kinds.append(UNUSED)
        elif index in added:
            kinds.append(CONTROL if added[index].special else USER_DEFINED)
        else:
            kinds.append(NORMAL)
    return texts, kinds


def _stops_left_out(spoken: Spoken) -> Sequence[str]:
    left = spoken.stop_ids[3:]
    names = spoken.tokenizer.convert_ids_to_tokens(left) if left else []
    return (
        [f"a GGUF file names three stop tokens, so {', '.join(map(str, names))} is left out"] if left else []
    )


def _normalizing(inner: dict[str, Any]) -> Sequence[str]:
    normalizer = inner.get("normalizer")
    if normalizer is None:
        return []
    return [
        f"the tokenizer normalizes text ({normalizer['type']}) and llama.cpp does not: other text gets other tokens"
    ]
