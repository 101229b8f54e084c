"""Tokens made word by word: those of the whole text, for every tokenizer that is cut so and every other."""

from __future__ import annotations

import random
from dataclasses import asdict

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lrft.data import alike, drafts, words
from lrft.data.alike import Split
from lrft.data.prepare import prepare
from lrft.data.rows import Rows

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN = LLAMA3.replace("{1,3}", "")
BYTES, BARE = pre_tokenizers.ByteLevel(False), pre_tokenizers.ByteLevel(False, use_regex=False)
CUTTERS = {
    "gpt2": [BYTES],
    "smollm": [pre_tokenizers.Digits(individual_digits=True), BYTES],
    "llama3": [pre_tokenizers.Split(Regex(LLAMA3), "isolated"), BARE],
    "qwen": [pre_tokenizers.Split(Regex(QWEN), "isolated"), BARE],
    "kept": [pre_tokenizers.Split(Regex(LLAMA3), "removed", invert=True), BARE],
    "spaces": [pre_tokenizers.Split(" ", "isolated"), pre_tokenizers.Digits(), BYTES],
}
MARKS = ["<|a|>", "<|ab|>", "<|"]
PIECES = [
    "the",
    "I'LL",
    "don't",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "12",
    "3.5",
    "½",
    "£",
    "“",
    "\u2019s",
    "é",
    "Ω",
    "Да",
    "!!",
    "_",
]
STRANGE = ["\u017f", "日本", "e\u0301", "\u2028", "\x1f", "\x85", "🎉", "\u212a"]


def made(cutters, marks=(), normalizer=None, dropout=None):
    """A byte-level tokenizer with these steps, taught words that begin in several ways."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(cutters) if len(cutters) > 1 else cutters[0]
    inner.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator(
        ["the then I'll 123 don't the  \n\n (the) 12.5 “the” été Да да 日本 <|"] * 9, trainer
    )
    inner.add_special_tokens([mark for mark in marks if isinstance(mark, str)])
    inner.add_tokens([mark for mark in marks if not isinstance(mark, str)])
    inner.model.dropout = dropout
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def alone(tokenizer, texts):
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def drawn(draw, pieces):
    return ["".join(draw.choices(pieces, k=draw.randint(0, 12))) for _ in range(120)]


@pytest.mark.parametrize("name", CUTTERS)
def test_the_tokens_of_a_text_are_those_of_its_words(name):
    draw = random.Random(name)
    tokenizer = made(CUTTERS[name], MARKS, normalizers.NFC())
    found = words._Words.of(tokenizer)
    assert found is not None
    plain, mixed = drawn(draw, PIECES + MARKS), drawn(draw, PIECES + MARKS + STRANGE)
    assert None not in map(found._cut, plain) and None in map(found._cut, mixed)
    for texts in (plain, mixed, plain):
        assert found.tokens(texts) == alone(tokenizer, texts)


def test_every_known_character_is_cut_as_the_tokenizer_cuts_it():
    for name in ("gpt2", "llama3"):
        tokenizer = made(CUTTERS[name])
        found = words._Words.of(tokenizer)
        texts = [f"a{c}b 1{c}2 {c}{c} {c}\n" for c in words.KNOWN]
        assert None not in map(found._cut, texts) and found.tokens(texts) == alone(tokenizer, texts)


def test_a_word_is_asked_for_once(monkeypatch):
    found = words._Words.of(made([BYTES]))
    asked = []
    monkeypatch.setattr(
        words, "_asked", lambda _, texts: asked.append(sorted(texts)) or [[len(t)] for t in texts]
    )
    assert found.tokens(["zero one", "zero two"]) == [[4, 4], [4, 4]]
    assert found.tokens(["zero two"]) == [[4, 4]] and asked[0] == [" one", " two", "zero"] and asked[1] == []
    found.held = words.HELD + 1
    found.tokens(["zero two"])
    assert asked[2] == [" two", "zero"] and found.held == 8


OTHERS = {
    "a space is put in front": ([pre_tokenizers.ByteLevel(True)], {}),
    "letters are changed": ([BYTES], {"normalizer": normalizers.Lowercase()}),
    "merges are drawn": ([BYTES], {"dropout": 0.5}),
    "words are no bytes": ([pre_tokenizers.Whitespace()], {}),
    "what is cut at goes to a neighbour": ([pre_tokenizers.Split(" ", "merged_with_next"), BYTES], {}),
    "lines have ends": ([pre_tokenizers.Split(Regex("a$"), "isolated"), BYTES], {}),
    "a class within a class": ([pre_tokenizers.Split(Regex("[a[bc]]"), "isolated"), BYTES], {}),
    "a kind of character that is not known": ([pre_tokenizers.Split(Regex(r"\w+"), "isolated"), BYTES], {}),
}


def test_other_tokenizers_are_asked_whole(word_tokenizer):
    for why, (cutters, more) in OTHERS.items():
        assert words._Words.of(made(cutters, **more)) is None, why
    tokenizer = word_tokenizer()
    assert words._Words.of(tokenizer) is None
    assert words.tokens_of_many(tokenizer)(["two plus two"]) == alone(tokenizer, ["two plus two"])
    assert words.tokens_of_many(tokenizer)([]) == []


def test_a_text_with_a_token_that_takes_its_spaces_is_asked_whole():
    tokenizer = made(
        [BYTES], [AddedToken("the", lstrip=True, normalized=False), AddedToken("Да", normalized=True)]
    )
    found, texts = words._Words.of(tokenizer), ["a  the b", "a Да", "a b"]
    assert [found._cut(text) is None for text in texts] == [True, True, False]
    assert found.tokens(texts) == alone(tokenizer, texts)


def test_a_word_that_would_be_cut_otherwise_by_itself_is_none():
    cutters = [
        pre_tokenizers.Split(Regex(r"ab(?!c)"), "isolated"),
        pre_tokenizers.Split(Regex("ab|c"), "isolated"),
        BARE,
    ]
    tokenizer = made(cutters)
    found, texts = words._Words.of(tokenizer), ["xabc", "abc", "ab"]
    assert found.tokens(texts) == alone(tokenizer, texts)
    cut = [
        pre_tokenizers.Split(Regex(r"b(?!c)"), "isolated"),
        pre_tokenizers.Split(Regex("ab|c"), "isolated"),
        BARE,
    ]
    found = words._Words.of(tokenizer := made(cut))
    assert found._words("abc") == ["ab", "c"] and found._words("ab") == ["a", "b"]
    assert found.tokens(["abc"]) == alone(tokenizer, ["abc"]) and "ab" not in found.known


def test_a_check_finds_the_same_whether_words_or_texts_are_asked(byte_tokenizer, renderer, monkeypatch):
    draw = random.Random(5)
    rows = [
        {"prompt": f"what is {k} and {draw.random()}?", "completion": f" it is {k}, {draw.random()}"}
        for k in range(60)
    ]
    rows[50], rows[51] = rows[3], {**rows[4], "completion": rows[4]["completion"] + "!"}
    rows[52] = {"prompt": "häufig 日本語\n\n", "completion": "\n\nso"}

    def check():
        rendering = renderer(byte_tokenizer(), "prompt_completion")
        prepared = prepare(Rows(rows, "rows.jsonl", "", lines=range(1, 61)), rendering)
        found = alike.compare(rendering.format, Split(prepared.rows, prepared.encoded), None, lambda *_: None)
        return [asdict(row) for row in prepared.encoded], prepared.report.record(), found.record()

    by_word = check()
    monkeypatch.setattr(
        drafts, "tokens_of_many", lambda tokenizer: lambda texts: words._asked(tokenizer, texts)
    )
    assert check() == by_word
    assert by_word[1]["duplicates"] == 1 and by_word[1]["first"]["duplicates"] == ("rows.jsonl:51",)
    assert [(one["row"], one["like"]) for one in by_word[2]["near_duplicates"]] == [
        ("rows.jsonl:52", "rows.jsonl:5")
    ]
