"""Log-probabilities of continuations, against a log-softmax by hand."""

from __future__ import annotations

import pytest
import torch

from lrft.evaluation.loglik import continuation_logprobs
from lrft.registry.errors import DataError, NumericalError


@torch.no_grad()
def by_hand(subject, prompt: list[int], continuation: list[int]) -> float:
    subject.hf.set_attn_implementation("eager")
    logits = subject.hf(input_ids=torch.tensor([prompt + continuation])).logits[0]
    logprobs = torch.log_softmax(logits.double(), -1)
    return sum(float(logprobs[len(prompt) - 1 + k, token]) for k, token in enumerate(continuation))


@pytest.mark.parametrize("attention", ["segmented", "sdpa"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_scores_equal_a_log_softmax_by_hand_in_the_order_given(
    make_subject, random_prompts, family, attention
):
    subject = make_subject(family, attention=attention, batch_tokens=60)
    prompts = random_prompts([3, 20, 1, 9, 9, 14])
    continuations = random_prompts([4, 1, 7, 2, 12, 3])
    found = continuation_logprobs(subject, prompts, continuations)
    assert [count for _, count in found] == [4, 1, 7, 2, 12, 3]
    wanted = [by_hand(subject, p, c) for p, c in zip(prompts, continuations, strict=True)]
    assert [total for total, _ in found] == pytest.approx(wanted, rel=1e-4)


def test_scores_do_not_depend_on_the_batch_size(make_subject, random_prompts):
    prompts, continuations = random_prompts(range(1, 9)), random_prompts(range(8, 0, -1))
    one = continuation_logprobs(make_subject(batch_tokens=1), prompts, continuations)
    all_at_once = continuation_logprobs(make_subject(batch_tokens=10_000), prompts, continuations)
    assert [s for s, _ in one] == pytest.approx([s for s, _ in all_at_once], rel=1e-5)


def test_what_cannot_be_scored_is_refused_by_place(make_subject):
    subject = make_subject()
    for prompts, continuations, word in (
        ([[5], []], [[1], [1]], "prompt"),
        ([[5], [5]], [[1], []], "continuation"),
    ):
        with pytest.raises(DataError, match=rf"file:9: the {word} has no token"):
            continuation_logprobs(subject, prompts, continuations, where=["file:8", "file:9"].__getitem__)
    with pytest.raises(DataError, match=r"1100 tokens.*1024 positions"):
        continuation_logprobs(subject, [[5] * 1000], [[6] * 100])


@torch.no_grad()
def test_a_log_probability_that_is_no_number_is_an_error_and_no_score(make_subject):
    subject = make_subject()
    subject.hf.get_output_embeddings().weight.fill_(torch.nan)
    with pytest.raises(NumericalError, match="row 1: the log-probability of an answer is nan"):
        continuation_logprobs(subject, [[3], [4, 5]], [[6], [7]])
