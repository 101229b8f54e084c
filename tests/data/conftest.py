"""Tiny tokenizers, and how the tests read a mask. Each fixture is a function for the test to call."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors, trainers
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from transformers import PreTrainedTokenizerFast

from lrft.data.encoded import Encoded
from lrft.data.tokenize import Renderer
from lrft.registry.axes import FORMATS
from lrft.registry.config import parse_choice

MARKS = ["<|im_start|>", "<|im_end|>", "<s>", "</s>", "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]"]
WORDS = (
    "[UNK] <pad> \n user assistant system model what is two plus ? four five six you are kind and now".split(
        " "
    )
)
CORPUS = [
    "Question: how many?\nAnswer: 72 clips",
    "The answer is abab 72, häufig 日本語",
    "abcabcabc 72 72 72",
] * 20


def _word_tokenizer(
    template: str | None = None, bos: bool = False, eos: str = "</s>"
) -> PreTrainedTokenizerFast:
    """One token a word, line feeds and marks; `bos`: `<s>` is put in front when special tokens are on."""
    tokens = WORDS + MARKS
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(Regex(" +"), "removed")]
    )
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            "<s> $A", special_tokens=[("<s>", tokens.index("<s>"))]
        )
    return _wrapped(tokenizer, template, "<s>", eos)


def _byte_tokenizer(
    template: str | None = None, bos: bool = False, eos: str = "</s>"
) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on a few words, so that neighbouring characters merge."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<pad>", *MARKS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if bos:
        front = [("<s>", tokenizer.token_to_id("<s>"))]
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=front)
    return _wrapped(tokenizer, template, "<s>", eos)


def _wrapped(tokenizer: Tokenizer, template: str | None, bos: str, eos: str) -> PreTrainedTokenizerFast:
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        pad_token="<pad>",
        extra_special_tokens=[mark for mark in MARKS if mark not in (bos, eos)],
    )
    wrapped.chat_template = template
    return wrapped


def _renderer(
    tokenizer: Any,
    format: Any,
    max_length: int = 10_000,
    too_long: Any = "error",
    stops: set[str] | None = None,
) -> Renderer:
    config = parse_choice(FORMATS, format)
    stop_ids = {tokenizer.convert_tokens_to_ids(stop) for stop in stops or {tokenizer.eos_token}}
    return Renderer(tokenizer, FORMATS.get(config.method)(config), stop_ids, max_length, too_long)


def _shown(encoded: Encoded, tokenizer: Any) -> str:
    """Tokens in order, the targets in brackets: the mask as one reads it."""
    tokens = tokenizer.convert_ids_to_tokens(encoded.input_ids)
    pieces = [f"({t})" if s else t for t, s in zip(tokens, encoded.supervised, strict=True)]
    return " ".join(piece.replace("\n", "\\n") for piece in pieces)


def _document(length: int, targets: int = 1, first: int = 100) -> Encoded:
    """Tokens first, first + 1, ...; the last `targets` of them supervised."""
    ids = list(range(first, first + length))
    return Encoded(ids, [k >= length - targets and k > 0 for k in range(length)], length=length)


@pytest.fixture(scope="session")
def word_tokenizer() -> Any:
    return _word_tokenizer


@pytest.fixture(scope="session")
def byte_tokenizer() -> Any:
    return _byte_tokenizer


@pytest.fixture(scope="session")
def renderer() -> Any:
    return _renderer


@pytest.fixture(scope="session")
def shown() -> Any:
    return _shown


@pytest.fixture(scope="session")
def document() -> Any:
    return _document
