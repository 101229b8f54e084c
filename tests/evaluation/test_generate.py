"""Greedy generation: the same text whatever it is batched with."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from transformers import StaticCache

from lrft.evaluation.batching import token_batches
from lrft.evaluation.decoded import decoded
from lrft.evaluation.generate import before_stop, generate
from lrft.evaluation.subject import EvaluationStopped
from lrft.model.batching import left_padded, stock_attention
from lrft.registry.errors import DataError, NumericalError

LENGTHS = [3, 17, 1, 40, 8, 8, 25, 2]
FAMILIES = ["llama", "qwen3", "gemma2", "gpt2", "bloom", "opt", "lfm2", "rwkv", "gpt_oss"]


@torch.no_grad()
def greedy_by_hand(subject, prompt: list[int], count: int) -> list[int]:
    """One row, no padding, no cache, no `generate`."""
    subject.hf.set_attn_implementation("eager")
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(subject.hf(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("family", FAMILIES)
def test_batch_one_and_batch_eight_generate_what_single_unpadded_prompts_do(
    make_subject, random_prompts, family
):
    prompts = random_prompts(LENGTHS)
    by_hand = make_subject(family)
    wanted = [greedy_by_hand(by_hand, prompt, 8) for prompt in prompts]
    assert len({tuple(output) for output in wanted}) == len(prompts), (
        "the outputs must differ to prove anything"
    )
    for batch_tokens in (1, 8 * 48):
        subject = make_subject(family, batch_tokens=batch_tokens)
        assert generate(subject, prompts, 8, stop_ids=()) == wanted


def test_the_head_is_given_states_without_gaps(make_subject, random_prompts):
    """Of a slice of those of a prompt the product would copy the head's weight for every row."""
    subject, seen = make_subject("llama", batch_tokens=8 * 48), []
    head = subject.hf.get_output_embeddings()
    forward = head.forward
    head.forward = lambda states: seen.append((states.shape[0], states.is_contiguous())) or forward(states)
    generate(subject, random_prompts(LENGTHS), 4, stop_ids=())
    assert max(rows for rows, _ in seen) == len(LENGTHS) and all(whole for _, whole in seen)
    assert not head._forward_pre_hooks


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stop_token_ends_its_row_alone_and_is_cut_off(make_subject, random_prompts, family):
    prompts = random_prompts(LENGTHS)
    subject = make_subject(family)
    free = generate(subject, prompts, 12, stop_ids=())
    stop = free[0][5]
    stopped = generate(subject, prompts, 12, stop_ids={stop})
    assert stopped == [before_stop(output, {stop}) for output in free]
    assert len(stopped[0]) <= 5
    assert max(map(len, stopped)) == 12, "some row must run to the limit"


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3", "rwkv"])
@pytest.mark.parametrize("works", [True, False])
def test_a_cache_of_its_final_size_changes_no_answer_and_is_left_where_it_fails(
    make_subject, random_prompts, monkeypatch, family, works
):
    """Used on a GPU alone: here the CPU is said to be one that gains by it."""
    prompts, subject = random_prompts(LENGTHS), make_subject(family)
    grown = generate(subject, prompts, 8, stop_ids=())
    assert subject.model.static_cache is None, "a CPU is not asked"
    monkeypatch.setattr("lrft.evaluation.generate.STATIC_ON", ("cpu",))
    made, init = [], StaticCache.__init__

    def noticed(self, *arguments, **settings):
        assert works
        made.append(self)
        init(self, *arguments, **settings)

    monkeypatch.setattr(StaticCache, "__init__", noticed)
    assert generate(subject, prompts, 8, stop_ids=()) == grown
    if family != "rwkv":  # it has a state of its own, and no such cache
        assert subject.model.static_cache is works is bool(made)


def test_before_stop_cuts_at_the_first_of_several():
    assert before_stop([4, 5, 6, 5], {6, 5}) == [4]
    assert before_stop([4, 5], {7}) == [4, 5]
    assert before_stop([7], {7}) == []


def test_prompts_are_padded_on_the_left_and_start_at_position_zero():
    inputs = left_padded([[5, 6, 7], [8]], pad_id=0)
    assert inputs["input_ids"].tolist() == [[5, 6, 7], [0, 0, 8]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert inputs["position_ids"].tolist() == [[0, 1, 2], [0, 0, 0]]


def test_batches_stay_within_the_tokens_and_hold_every_row_once():
    lengths = [5, 1, 9, 3, 30, 2, 2]
    batches = token_batches(lengths, 12)
    assert sorted(index for batch in batches for index in batch) == list(range(7))
    assert batches[0] == [4], "a row longer than the budget is a batch of its own, and comes first"
    assert all(len(batch) * max(lengths[i] for i in batch) <= 12 for batch in batches[1:])
    assert len(batches) == 4
    assert token_batches([], 12) == []


def test_the_checkpoints_generation_settings_have_no_say(make_subject, random_prompts):
    prompts = random_prompts(LENGTHS)
    subject = make_subject()
    plain = generate(subject, prompts, 12, stop_ids=())
    settings = subject.hf.generation_config
    settings.repetition_penalty, settings.do_sample, settings.temperature = 5.0, True, 3.0
    settings.suppress_tokens = [output[0] for output in plain]
    assert generate(subject, prompts, 12, stop_ids=()) == plain
    assert subject.hf.generation_config is settings


def test_attention_and_modes_are_put_back_also_after_an_error(make_subject):
    subject = make_subject(attention="segmented")
    subject.model.train()
    with pytest.raises(OSError), stock_attention(subject.hf) as stock:
        assert stock == subject.hf.config._attn_implementation == "sdpa"
        raise OSError
    generate(subject, [[5, 6]], 2)
    assert subject.hf.config._attn_implementation == "segmented"
    assert all(module.training for module in subject.model.modules())


def test_the_cap_on_attention_logits_is_kept_while_generating(make_subject):
    with stock_attention(make_subject("gemma2").hf) as stock:
        assert stock == "eager"


def test_a_signal_stops_within_a_token_even_in_the_middle_of_a_batch(make_subject, random_prompts):
    calls: list[int] = []

    def later() -> bool:
        calls.append(1)
        return len(calls) >= 5

    with pytest.raises(EvaluationStopped):
        generate(make_subject(should_stop=later), random_prompts(LENGTHS), 500, stop_ids=())
    assert len(calls) <= 7


def test_progress_is_told_after_every_batch(make_subject, random_prompts):
    told = []
    subject = make_subject(batch_tokens=1, progress=lambda *report: told.append(report))
    generate(subject, random_prompts([3, 2]), 2, what="gsm8k")
    assert told == [("gsm8k", 0, 2), ("gsm8k", 1, 2), ("gsm8k", 2, 2)]


def test_prompts_that_do_not_fit_the_model_are_refused_before_anything_runs(make_subject):
    subject = make_subject("gpt2")
    with pytest.raises(DataError, match=r"f:2: needs 1030 tokens, but the model has 1024 positions"):
        generate(subject, [[5], [5] * 1000], 30, where=["f:1", "f:2"].__getitem__)
    with pytest.raises(DataError, match="f:1: the prompt is empty"):
        generate(subject, [[]], 30, where=["f:1"].__getitem__)


def test_no_prompts_are_no_outputs(make_subject):
    assert generate(make_subject(), [], 5) == []


def test_compressed_layers_generate_the_same_decoded(quantized_subject, random_prompts):
    subject, layers = quantized_subject
    prompts = random_prompts([4, 9])
    decodings: list[int] = []

    def counted(layer):
        decodings.append(1)
        return type(layer).weight(layer)

    for layer in layers:
        layer.__dict__["weight"] = partial(counted, layer)
    slow = generate(subject, prompts, 6, stop_ids=())
    every_token = len(decodings)
    for layer in layers:
        del layer.__dict__["weight"]
    assert generate(subject, prompts, 6, stop_ids=()) == slow
    assert every_token >= 6 * len(layers)


def test_decoded_holds_each_compressed_weight_once_and_lets_go(quantized_subject):
    subject, layers = quantized_subject
    with decoded(subject.model) as count:
        assert count == len(layers) > 0
        assert all(layer.weight() is layer.weight() for layer in layers)
        assert all(torch.equal(layer.weight(), type(layer).weight(layer)) for layer in layers)
        with decoded(subject.model) as again:
            assert again == 0
        assert all("weight" in layer.__dict__ for layer in layers), "an inner context must not undo the outer"
    assert not any("weight" in layer.__dict__ for layer in layers)


def test_decoded_lets_go_after_an_error_inside_and_while_decoding(quantized_subject, monkeypatch):
    subject, layers = quantized_subject
    with pytest.raises(OSError), decoded(subject.model):
        raise OSError
    assert not any("weight" in layer.__dict__ for layer in layers)

    calls: list[int] = []
    original = type(layers[0]).weight

    def breaks_later(layer):
        calls.append(1)
        if len(calls) > 3:
            raise MemoryError
        return original(layer)

    monkeypatch.setattr(type(layers[0]), "weight", breaks_later)
    with pytest.raises(MemoryError), decoded(subject.model):
        pass
    assert not any("weight" in layer.__dict__ for layer in layers)


def test_decoded_stays_within_its_budget(quantized_subject):
    subject, layers = quantized_subject
    sizes = [layer.out_features * layer.in_features * 4 for layer in layers]
    with decoded(subject.model, limit_bytes=sum(sizes) // 2) as count:
        held = [size for size, layer in zip(sizes, layers, strict=True) if "weight" in layer.__dict__]
        assert 0 < count == len(held) < len(layers)
        assert sum(held) <= sum(sizes) // 2
    with decoded(subject.model, limit_bytes=0) as count:
        assert count == 0


def test_dense_layers_are_left_alone(dense_subject):
    with decoded(dense_subject.model) as count:
        assert count == 0


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_no_numbers_give_no_answer(make_subject, random_prompts, value):
    subject = make_subject()
    with torch.no_grad():
        subject.hf.get_output_embeddings().weight[7] = value
    with pytest.raises(NumericalError, match=r"row 0: the model's logits are no finite numbers"):
        generate(subject, random_prompts([4]), 3)


def test_equal_batches_hold_rows_of_one_length():
    batches = token_batches(LENGTHS, 64, equal=True)
    assert sorted(index for batch in batches for index in batch) == list(range(len(LENGTHS)))
    assert all(len({LENGTHS[index] for index in batch}) == 1 for batch in batches)
    assert [4, 5] in batches
