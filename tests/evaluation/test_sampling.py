"""Drawn tokens: the distribution, and that seed and row alone decide them."""

from __future__ import annotations

import pytest
import torch

from lrft.evaluation.answering import answer_all, windows
from lrft.evaluation.generate import generate
from lrft.evaluation.sampling import Sampling, choose, uniform
from lrft.registry.errors import DataError, UsageError

LENGTHS = [3, 17, 1, 40, 8, 8, 25, 2]
DRAWN = Sampling(temperature=1.0, seed=5)


def drawn(probabilities: list[float], sampling: Sampling, count: int = 4000) -> list[float]:
    """The share of each token among `count` draws at evenly spaced uniform numbers."""
    logits = torch.tensor([probabilities]).log().expand(count, -1)
    uniforms = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    found = choose(logits, uniforms, sampling)
    return [float((found == token).double().mean()) for token in range(len(probabilities))]


# By hand: at T = 2 weights are square roots, .8 : .2 : .5657; top_k and top_p renormalise.
@pytest.mark.parametrize(
    ("sampling", "wanted"),
    [
        (Sampling(1.0), [0.64, 0.04, 0.32]),
        (Sampling(2.0), [0.5110, 0.1277, 0.3613]),
        (Sampling(1.0, top_k=2), [2 / 3, 0, 1 / 3]),
        (Sampling(1.0, top_k=1), [1, 0, 0]),
        (Sampling(1.0, top_p=0.63), [1, 0, 0]),
        (Sampling(1.0, top_p=0.65), [2 / 3, 0, 1 / 3]),
        (Sampling(1.0, top_p=0.97), [0.64, 0.04, 0.32]),
        (Sampling(1.0, top_k=2, top_p=0.66), [1, 0, 0]),
        (Sampling(1.0, top_k=9), [0.64, 0.04, 0.32]),
    ],
    ids=str,
)
def test_tokens_are_drawn_with_the_probabilities_asked_for(sampling, wanted):
    assert drawn([0.64, 0.04, 0.32], sampling) == pytest.approx(wanted, abs=1e-3)


def test_uniform_numbers_are_fixed_spread_and_differ_by_seed_row_and_step():
    assert uniform(0, 0, 0) == pytest.approx(0.420985, abs=5e-7), (
        "the draws of runs that are kept must not change"
    )
    many = torch.tensor([uniform(1, row, step) for row in range(50) for step in range(50)])
    assert many.min() >= 0 and many.max() < 1 and len(set(many.tolist())) == 2500
    assert float(many.mean()) == pytest.approx(0.5, abs=0.02)
    assert len({uniform(*key) for key in ((0, 1, 2), (1, 0, 2), (0, 2, 1), (2, 1, 0), (0, 12, 0))}) == 5


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_is_drawn_depends_on_seed_and_row_and_not_on_the_batch(make_subject, random_prompts, family):
    prompts = random_prompts(LENGTHS)
    whole = generate(make_subject(family, batch_tokens=8 * 48), prompts, 8, stop_ids=(), sampling=DRAWN)
    subject = make_subject(family, batch_tokens=1)
    assert generate(subject, prompts, 8, stop_ids=(), sampling=DRAWN) == whole
    assert generate(subject, prompts[3:], 8, stop_ids=(), sampling=DRAWN, first=3) == whole[3:]
    assert generate(subject, prompts[3:], 8, stop_ids=(), sampling=DRAWN) != whole[3:]
    other = generate(subject, prompts, 8, stop_ids=(), sampling=Sampling(1.0, seed=6))
    assert sum(a != b for a, b in zip(other, whole, strict=True)) >= 6


def test_equal_prompts_are_answered_differently_and_greedily_alike(make_subject):
    subject = make_subject()
    prompts = [[5, 6, 7]] * 4
    assert len({tuple(o) for o in generate(subject, prompts, 8, stop_ids=(), sampling=DRAWN)}) == 4
    likeliest = generate(subject, prompts, 8, stop_ids=())
    assert generate(subject, prompts, 8, stop_ids=(), sampling=Sampling()) == likeliest
    assert generate(subject, prompts, 8, stop_ids=(), sampling=Sampling(1.0, top_k=1)) == likeliest


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (Sampling(-1.0), "temperature -1.0: give 0"),
        (Sampling(1e-320), "temperature 1e-320: give 0"),  # which drew the least likely token
        (Sampling(float("nan")), "temperature nan"),
        (Sampling(1.0, top_p=0.0), "top_p 0.0: is a share"),
        (Sampling(1.0, top_k=-1), "top_k -1: is a number"),
        (Sampling(top_p=0.9), "top_p 0.9: nothing is drawn at temperature 0"),
        (Sampling(top_k=4), "top_k 4: nothing is drawn at temperature 0"),
    ],
    ids=str,
)
def test_settings_without_a_meaning_or_an_effect_are_refused(sampling, message):
    with pytest.raises(UsageError, match=message):
        sampling.check()


def test_windows_hold_every_row_once_in_order():
    found = windows([5, 5, 1, 30, 2, 2], 10)
    assert found == [range(0, 2), range(2, 4), range(4, 6)]
    assert windows([], 10) == []
    assert windows([3], 10) == [range(0, 1)]


@pytest.mark.parametrize("done", [0, 1, 4, 7, 8])
def test_what_is_left_after_a_cut_is_answered_as_it_would_have_been(
    make_subject, random_prompts, done, monkeypatch
):
    monkeypatch.setattr("lrft.evaluation.answering.BATCHES", 1)
    told: list[tuple[str, int, int]] = []
    subject = make_subject(batch_tokens=60, progress=lambda *report: told.append(report))
    subject.stop_ids = set()
    prompts = random_prompts(LENGTHS)
    whole = generate(subject, prompts, 4, sampling=DRAWN)
    told.clear()
    parts = list(answer_all(subject, prompts, 4, DRAWN, done))
    found = [one for part in parts for one in part]
    assert [one.row for one in found] == list(range(done, 8))
    assert [one.tokens for one in found] == whole[done:]
    assert not any(one.stopped for one in found)
    assert len(parts) > 1 or done > 3
    assert done == 8 or told[-1] == ("generate", 8, 8)


def test_a_prompt_that_is_too_long_is_refused_before_any_is_answered(make_subject):
    subject = make_subject("gpt2", batch_tokens=1)
    with pytest.raises(DataError, match="f:2: needs 1030 tokens"):
        next(answer_all(subject, [[5], [5] * 1020], 10, DRAWN, 0, ["f:1", "f:2"].__getitem__))
