"""The tokenizer of a GGUF file as llama.cpp cuts text: by its own rule, and not by what transformers makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from lrft.model.gguf import fields_of
from lrft.registry.protocols import Tokenizer

CONTROL, USER_DEFINED = 3, 4  # gguf.TokenType

_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_HEAD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
DIGITS = "digits"
# What text is split by before merging (nothing but the plain byte-level rule, single digits too, or an expression), and
# whether whole words of the vocabulary are taken without merging -> llama.cpp's name.
SPLITS = {
    ("", False): "gpt-2",
    (DIGITS, False): "smollm",
    (_HEAD + r"\p{N}{1,3}" + _TAIL, True): "llama-bpe",
    (_HEAD + r"\p{N}{1,3}" + _TAIL, False): "smaug-bpe",
    (_HEAD + r"\p{N}" + _TAIL, False): "qwen2",
}


def gguf_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a model file, its chat template and its stops included.

    Raises:
        DamagedFile: it is no GGUF file.
        ValueError: it is of a kind that is not read here.
    """
    from gguf import Keys
    from transformers import PreTrainedTokenizerFast

    said = {key: value for key, value in fields_of(path).items() if key.startswith("tokenizer.")}
    if said.get(Keys.Tokenizer.MODEL) != "gpt2":
        raise ValueError(
            f"its tokenizer is {said.get(Keys.Tokenizer.MODEL)}, and byte-level BPE is read here"
        )
    texts = said[Keys.Tokenizer.LIST]
    marks = {
        name: texts[said[key]]
        for name, key in (
            ("bos", Keys.Tokenizer.BOS_ID),
            ("eos", Keys.Tokenizer.EOS_ID),
            ("pad", Keys.Tokenizer.PAD_ID),
        )
        if key in said
    }
    inner = _inner(said, texts, Keys.Tokenizer)
    found = PreTrainedTokenizerFast(
        tokenizer_object=inner, **{f"{name}_token": text for name, text in marks.items()}
    )
    found.chat_template = said.get(Keys.Tokenizer.CHAT_TEMPLATE)
    return cast(Tokenizer, found)


def gguf_stops(path: Path) -> set[int]:
    """The ids that end an answer."""
    from gguf import Keys

    fields = fields_of(path)
    keys = (Keys.Tokenizer.EOS_ID, Keys.Tokenizer.EOT_ID, Keys.Tokenizer.EOM_ID)
    return {int(fields[key]) for key in keys if key in fields}


def _inner(said: dict[str, Any], texts: list[str], keys: Any) -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

    names = {name: split for split, name in SPLITS.items()}
    if said[keys.PRE] not in names:
        raise ValueError(f"text is split by the rule {said[keys.PRE]}, which is not known here")
    split, whole = names[said[keys.PRE]]
    merges = [tuple(merge.split(" ", 1)) for merge in said[keys.MERGES]]
    vocabulary = {text: index for index, text in enumerate(texts)}
    inner = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=whole))
    plain = split in ("", DIGITS)
    steps: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=plain)]
    if split == DIGITS:
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    elif not plain:
        steps.insert(0, pre_tokenizers.Split(Regex(split), "isolated"))
    inner.pre_tokenizer = pre_tokenizers.Sequence(steps)
    kinds = said[keys.TOKEN_TYPE]
    for kind, special in ((CONTROL, True), (USER_DEFINED, False)):
        marked = [text for text, own in zip(texts, kinds, strict=True) if own == kind]
        tokens = [AddedToken(text, special=special, normalized=False) for text in marked]
        (inner.add_special_tokens if special else inner.add_tokens)(tokens)
    return inner
