"""Masks, worked by hand: `shown` puts the targets in brackets."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lrft.data.seam import token_ids
from lrft.data.show import spans
from lrft.data.sources import Rows, read_rows
from lrft.data.tokenize import encode_all
from lrft.registry.config import Source
from lrft.registry.errors import DataError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }} {{ eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant turns') }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)

TWO_TURNS = {
    "messages": [
        {"role": "user", "content": "what is two"},
        {"role": "assistant", "content": "four"},
        {"role": "user", "content": "and now ?"},
        {"role": "assistant", "content": "five six"},
    ]
}
ONE_TURN = {"messages": TWO_TURNS["messages"][:2]}
TEMPLATES = {"chatml": (CHATML, "<|im_end|>"), "llama2": (LLAMA2, "</s>"), "gemma": (GEMMA, "<end_of_turn>")}


def test_chatml_learns_each_answer_with_its_stop_token_and_not_the_newline_after_it(
    word_tokenizer, renderer, shown
):
    tokenizer = word_tokenizer(CHATML, eos="<|im_end|>")
    assert shown(renderer(tokenizer, "chat").encode(TWO_TURNS), tokenizer) == (
        r"<|im_start|> user \n what is two <|im_end|> \n <|im_start|> assistant \n (four) (<|im_end|>) \n "
        r"<|im_start|> user \n and now ? <|im_end|> \n <|im_start|> assistant \n (five) (six) (<|im_end|>) \n"
    )


def test_learning_only_the_last_answer_leaves_earlier_ones_out(word_tokenizer, renderer, shown):
    tokenizer = word_tokenizer(CHATML, eos="<|im_end|>")
    encoded = renderer(tokenizer, {"method": "chat", "learn": "last"}).encode(TWO_TURNS)
    assert shown(encoded, tokenizer).endswith(r"assistant \n (five) (six) (<|im_end|>) \n")
    assert encoded.targets == 3


def test_llama2_with_a_bos_written_by_the_template_gets_no_second_one(word_tokenizer, renderer, shown):
    tokenizer = word_tokenizer(LLAMA2, bos=True)
    encoded = renderer(tokenizer, "chat").encode(TWO_TURNS)
    assert shown(encoded, tokenizer) == (
        "<s> [INST] what is two [/INST] (four) (</s>) <s> [INST] and now ? [/INST] (five) (six) (</s>)"
    )
    assert encoded.extra_bos == 0


def test_gemma_stops_at_end_of_turn(word_tokenizer, renderer, shown):
    tokenizer = word_tokenizer(GEMMA, bos=True)
    encoded = renderer(tokenizer, "chat", stops={"</s>", "<end_of_turn>"}).encode(ONE_TURN)
    assert shown(encoded, tokenizer) == (
        r"<s> <start_of_turn> user \n what is two <end_of_turn> \n <start_of_turn> model \n "
        r"(four) (<end_of_turn>) \n"
    )


@pytest.mark.parametrize("kind", TEMPLATES)
def test_masks_on_bytes_cover_exactly_the_answers_and_stop_tokens(kind, byte_tokenizer, renderer):
    template, stop = TEMPLATES[kind]
    tokenizer = byte_tokenizer(template, bos=kind != "chatml", eos=stop)
    encoded = renderer(tokenizer, "chat", stops={stop}).encode(TWO_TURNS)
    learnt = [i for i, wanted in zip(encoded.input_ids, encoded.supervised, strict=True) if wanted]
    spaced = tokenizer.decode(learnt, clean_up_tokenization_spaces=False).replace(" ", "")
    assert spaced == f"four{stop}fivesix{stop}"


@pytest.mark.parametrize("kind", TEMPLATES)
def test_generation_starts_from_what_training_saw_before_the_answer(kind, byte_tokenizer, renderer):
    template, stop = TEMPLATES[kind]
    tokenizer = byte_tokenizer(template, bos=kind != "chatml", eos=stop)
    made = renderer(tokenizer, "chat", stops={stop})
    encoded, prompt = made.encode(ONE_TURN), made.prompt_ids(ONE_TURN)
    assert encoded.input_ids[: len(prompt)] == prompt
    assert encoded.supervised.index(True) == len(prompt)
    assert made.reference(ONE_TURN) == "four"


def test_plain_learns_the_completion_and_an_appended_stop_token(word_tokenizer, renderer, shown):
    tokenizer = word_tokenizer(bos=True)
    made = renderer(tokenizer, "prompt_completion")
    row = {"prompt": "two plus two is", "completion": " four"}
    assert shown(made.encode(row), tokenizer) == "<s> two plus two is (four) (</s>)"
    assert made.prompt_ids(row) == tokenizer("two plus two is")["input_ids"]
    assert made.reference(row) == " four"


def test_plain_without_a_bos_tokenizer_gets_none(word_tokenizer, renderer, shown):
    tokenizer = word_tokenizer()
    row = {"prompt": "two is", "completion": " four"}
    assert shown(renderer(tokenizer, "prompt_completion").encode(row), tokenizer) == "two is (four) (</s>)"


def test_text_that_brings_its_own_bos_and_stop_token_gets_no_second(word_tokenizer, renderer, shown):
    tokenizer = word_tokenizer(bos=True)
    encoded = renderer(tokenizer, "text").encode({"text": "<s> what is two </s>"})
    assert shown(encoded, tokenizer) == "<s> (what) (is) (two) (</s>)"
    assert encoded.extra_bos == 0


def test_a_doubled_bos_in_the_text_is_counted(word_tokenizer, renderer):
    tokenizer = word_tokenizer(bos=True)
    assert renderer(tokenizer, "text").encode({"text": "<s><s> what"}).extra_bos == 1
    doubled = word_tokenizer("{{ bos_token }}" + LLAMA2)
    assert renderer(doubled, "chat").encode(ONE_TURN).extra_bos == 1
    inside = {
        "messages": [{"role": "user", "content": "what <s> is"}, {"role": "assistant", "content": "four"}]
    }
    assert renderer(word_tokenizer(LLAMA2), "chat").encode(inside).extra_bos == 1


def test_the_first_token_of_raw_text_is_never_a_target(word_tokenizer, renderer, shown):
    tokenizer = word_tokenizer()
    assert (
        shown(renderer(tokenizer, "text").encode({"text": "four five six"}), tokenizer)
        == "four (five) (six) (</s>)"
    )


SEAMS = {
    "two_letters_that_are_one_token": ("answer a", "bab 72"),
    "a_space_that_belongs_to_the_word": ("Answer: ", "72 clips"),
    "a_space_and_the_first_byte_of_a_character": ("Wort: ", "日本 häufig"),
    "a_blank_line": ("Question: how many?\n\n", "72"),
    "nothing_shared": ("Wort:\n", "日本 häufig"),
}


@pytest.mark.parametrize("seam", SEAMS)
def test_an_answer_follows_the_tokens_of_its_prompt_alone_and_is_learnt_in_full(
    seam, byte_tokenizer, renderer
):
    prompt, completion = SEAMS[seam]
    tokenizer = byte_tokenizer()
    made, row = renderer(tokenizer, "prompt_completion"), {"prompt": prompt, "completion": completion}
    encoded, asked = made.encode(row), made.prompt_ids(row)
    assert asked == token_ids(tokenizer, prompt) == encoded.input_ids[: len(asked)]
    assert encoded.supervised.index(True) == len(asked)
    assert tokenizer.decode(encoded.input_ids[len(asked) : -1]) == completion and not encoded.merged
    joint = token_ids(tokenizer, prompt + completion)
    assert encoded.apart == (joint[: len(asked)] != asked)
    assert encoded.apart or encoded.input_ids[:-1] == joint


@pytest.mark.parametrize("prepend", ["always", "first"])
def test_a_word_marked_by_its_space_gets_none_where_the_text_has_none(prepend, renderer):
    """A sentence-piece tokenizer writes a space in front of what it takes for the beginning of a text."""
    vocabulary = [
        ("<unk>", 0.0),
        ("<s>", 0.0),
        ("</s>", 0.0),
        *((c, -9.0) for c in "▁abcd0:.\n"),
        ("b0", -1.0),
    ]
    raw = Tokenizer(models.Unigram(vocabulary, 0))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=False)
    raw.decoder = decoders.Metaspace(prepend_scheme=prepend, split=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    made, row = renderer(tokenizer, "prompt_completion"), {"prompt": "a: b", "completion": "0 cd"}
    encoded = made.encode(row)
    assert encoded.apart and encoded.input_ids[: len(made.prompt_ids(row))] == made.prompt_ids(row)
    assert tokenizer.decode(encoded.input_ids[:-1]) == "a: b0 cd"


def test_a_token_that_nothing_else_spells_stays_over_the_seam_and_is_not_learnt(
    word_tokenizer, renderer, shown
):
    tokenizer = word_tokenizer()
    encoded = renderer(tokenizer, "prompt_completion").encode(
        {"prompt": "what is fo", "completion": "ur five"}
    )
    assert encoded.merged and shown(encoded, tokenizer) == "what is four (five) (</s>)"


def test_every_answer_of_a_conversation_begins_at_a_boundary(byte_tokenizer, renderer):
    spaced = (
        "{% for m in messages %}{{ 'Question: ' if m.role == 'user' else 'Answer: ' }}{{ m.content }}"
        "{{ '\n' if m.role == 'user' else eos_token }}{% endfor %}{% if add_generation_prompt %}Answer: {% endif %}"
    )
    tokenizer = byte_tokenizer(spaced)
    turns = [("user", "how many?"), ("assistant", "72"), ("user", "how?"), ("assistant", "abab")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    made = renderer(tokenizer, "chat")
    encoded, asked = made.encode(row), made.prompt_ids(row)
    first = made.prompt_ids({"messages": row["messages"][:2]})
    assert encoded.apart and tokenizer.decode(encoded.input_ids) == (
        "Question: how many?\nAnswer: 72</s>Question: how?\nAnswer: abab</s>"
    )
    assert encoded.input_ids[: len(first)] == first and encoded.input_ids[: len(asked)] == asked
    assert [text for text, learnt in spans(encoded, tokenizer) if learnt] == ["72</s>", "abab</s>"]


def test_a_template_that_rewrites_earlier_answers_is_refused_by_turn_unless_only_the_last_is_learnt(
    word_tokenizer, renderer
):
    rewriting = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ m.content if loop.last or m.role != 'assistant' else 'six' }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = word_tokenizer(rewriting, eos="<|im_end|>")
    with pytest.raises(DataError, match=r"message 2: .* rewrites .* data\.format\.learn: last"):
        renderer(tokenizer, "chat").encode(TWO_TURNS)
    assert renderer(tokenizer, {"method": "chat", "learn": "last"}).encode(TWO_TURNS).targets == 3


def test_a_generation_prompt_that_the_answer_does_not_follow_is_refused(word_tokenizer, renderer):
    thinking = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>{% endif %}")
    with pytest.raises(DataError, match=r"message 2: .* writes the prompt of this answer differently"):
        renderer(word_tokenizer(thinking, eos="<|im_end|>"), "chat").encode(ONE_TURN)


def test_a_conversation_the_template_refuses_is_a_sentence(word_tokenizer, renderer):
    row = {"messages": [{"role": "system", "content": "you are kind"}, *ONE_TURN["messages"]]}
    with pytest.raises(DataError, match="refuses the conversation: only user and assistant turns"):
        renderer(word_tokenizer(LLAMA2), "chat").encode(row)


def test_a_model_without_a_chat_template_is_refused_with_the_remedy(word_tokenizer, renderer):
    with pytest.raises(
        DataError, match=r"no chat template; name one as data.template, such as plain, or use a"
    ):
        renderer(word_tokenizer(), "chat").encode(ONE_TURN)


def test_what_follows_the_last_answer_is_left_out(word_tokenizer, renderer):
    tokenizer = word_tokenizer(CHATML, eos="<|im_end|>")
    longer = {"messages": [*ONE_TURN["messages"], {"role": "user", "content": "and now ?"}]}
    made = renderer(tokenizer, "chat")
    assert made.encode(longer) == made.encode(ONE_TURN)


def test_a_conversation_without_an_answer_has_no_target(word_tokenizer, renderer):
    tokenizer = word_tokenizer(CHATML, eos="<|im_end|>")
    encoded = renderer(tokenizer, "chat").encode({"messages": ONE_TURN["messages"][:1]})
    assert encoded.targets == 0 and len(encoded.input_ids) == 8


LONG = {"prompt": "what is two plus two ?", "completion": " four five six"}


@pytest.mark.parametrize(
    ("too_long", "max_length", "expected"),
    [
        ("error", 8, "<s> what is two plus two ? (four) (five) (six) (</s>)"),
        ("drop", 8, ""),
        ("drop", 11, "<s> what is two plus two ? (four) (five) (six) (</s>)"),
        ("truncate_left", 8, "<s> plus two ? (four) (five) (six) (</s>)"),
        ("truncate_left", 5, "<s> (four) (five) (six) (</s>)"),
        ("truncate_left", 3, "<s> (six) (</s>)"),
        ("truncate_right", 9, "<s> what is two plus two ? (four) (five)"),
        ("truncate_right", 5, "<s> what is two plus"),
    ],
)
def test_rows_over_the_limit(too_long, max_length, expected, word_tokenizer, renderer, shown):
    tokenizer = word_tokenizer(bos=True)
    encoded = renderer(tokenizer, "prompt_completion", max_length, too_long).encode(LONG)
    assert shown(encoded, tokenizer) == expected
    assert encoded.length == 11
    assert encoded.dropped == (expected == "")
    assert encoded.truncated == (0 < len(encoded.input_ids) < 11)


def test_truncating_left_without_a_bos_never_makes_the_first_token_a_target(word_tokenizer, renderer, shown):
    tokenizer = word_tokenizer()
    encoded = renderer(tokenizer, "prompt_completion", 3, "truncate_left").encode(LONG)
    assert shown(encoded, tokenizer) == "five (six) (</s>)"


def test_a_broken_row_is_named_by_file_and_line(tmp_path, word_tokenizer, renderer):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}\n\n{"prompt": "a"}\n')
    rows = read_rows(Source(source=str(file)), "train")
    with pytest.raises(
        DataError, match=rf"^{file}:3: the prompt_completion format needs column 'completion'"
    ):
        encode_all(rows, renderer(word_tokenizer(), "prompt_completion"))


def test_progress_hears_of_every_row(word_tokenizer, renderer):
    heard = []
    rows = Rows([{"text": "four"}, {"text": "five"}], "here", "")
    encode_all(rows, renderer(word_tokenizer(), "text"), lambda done, total: heard.append((done, total)))
    assert heard == [(1, 2), (2, 2)]


GSM8K = {"method": "columns", "prompt": "Question: {question}\nAnswer:", "completion": " {answer}"}


@pytest.mark.skipif("LRFT_DATA" not in os.environ, reason="LRFT_DATA names no folder with gsm8k/train.jsonl")
def test_every_gsm8k_row_learns_exactly_its_answer(byte_tokenizer, renderer):
    path = Path(os.environ["LRFT_DATA"]) / "gsm8k" / "train.jsonl"
    rows = read_rows(Source(source=str(path), limit=1500), "train")
    tokenizer = byte_tokenizer(bos=True)
    encoded = encode_all(rows, renderer(tokenizer, GSM8K))
    written = [json.loads(line) for line in path.read_text().splitlines()[:1500]]
    for row, made in zip(written, encoded, strict=True):
        learnt = [i for i, wanted in zip(made.input_ids, made.supervised, strict=True) if wanted]
        assert tokenizer.decode(learnt, clean_up_tokenization_spaces=False) == f" {row['answer']}</s>"
        assert not made.merged and made.extra_bos == 0 and made.input_ids.count(tokenizer.bos_token_id) == 1
