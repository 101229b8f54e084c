"""SG-LoRA: the mixture of experts by hand, its baseline against `cat`, and a prior that is learnt."""

from __future__ import annotations

import pytest
import torch

from lrft.core.generate import Known
from lrft.registry.axes import COMBINATIONS
from tests.methods.combine.made import method
from tests.methods.generate.made import LAYOUT, draws, generator, library


def test_of_one_expert_the_mixture_has_the_statistics_of_that_expert():
    made, known = generator("sg_lora", top=1)
    for place, one in enumerate(known):
        mean, variance = made.experts.together(one.condition)
        assert made.experts.weights(one.condition).tolist() == [float(k == place) for k in range(3)]
        torch.testing.assert_close(mean, one.samples.mean(0))
        torch.testing.assert_close(variance, one.samples.var(0, correction=0))


def test_of_experts_that_are_alike_nothing_lies_between():
    one = library("sg_lora")[0]
    made, _ = generator("sg_lora", [one, Known("again", one.samples, one.condition)], top=2)
    mean, variance = made.experts.together(one.condition)
    torch.testing.assert_close(mean, one.samples.mean(0))
    torch.testing.assert_close(variance, one.samples.var(0, correction=0))


def test_the_variance_is_that_of_the_mixture_by_hand():
    """Weights 1/2 each: samples 0, 2 and 4, 4 have variance 1 and 0 within, means 1 and 4, so 1/2 + 9/4."""
    shape = (2, LAYOUT.size)
    first = torch.tensor([[0.0], [2.0]]).expand(shape)
    text = torch.ones(6)
    known = [Known("a", first, text), Known("b", torch.full(shape, 4.0), text)]
    made, _ = generator("sg_lora", known, top=2)
    mean, variance = made.experts.together(text)
    assert mean.unique().tolist() == [2.5] and variance.unique().tolist() == [2.75]


def test_weights_are_a_softmax_over_the_nearest_alone():
    made, known = generator("sg_lora", top=2, temperature=0.5)
    text = known[1].condition
    cosines = torch.stack([torch.cosine_similarity(text, one.condition, dim=0) for one in known])
    far = int(cosines.argmin())
    expected = cosines.clone()
    expected[far] = -torch.inf
    torch.testing.assert_close(made.experts.weights(text), (expected / 0.5).softmax(0))


def test_only_the_last_checkpoints_count():
    made, known = generator("sg_lora", top=1, last=2)
    torch.testing.assert_close(made.experts.together(known[0].condition)[0], known[0].samples[-2:].mean(0))


def test_the_loss_has_no_divergence_where_the_two_gaussians_are_one():
    """Both networks made to say the same whatever they see: what is left is the error, at any weight."""
    found = []
    for kl in (0.0, 5.0):
        made, known = generator("sg_lora", kl=kl)
        for network in (made.posterior, made.prior):
            torch.nn.init.zeros_(network[-1].weight)
            torch.nn.init.constant_(network[-1].bias, 0.3)
        found.append(made.loss(known, draws()))
    assert torch.equal(*found)
    torch.nn.init.constant_(made.prior[-1].bias, -0.3)
    assert made.loss(known, draws()) > found[1]


@pytest.mark.parametrize("name", ["sg_lora", "softmax_merge"])
def test_the_baseline_is_the_weighted_sum_of_the_changes_as_cat_makes_it(name):
    made, known = generator(name, top=3)
    text = known[2].condition
    weights = made.experts.weights(text).tolist()
    cat = method("cat", weights)
    assert COMBINATIONS.names().count("cat") == 1
    from lrft.core.combine import Part

    means = [LAYOUT.factors(one.samples.mean(0)) for one in known]
    merged = made.beside(text)["softmax_merge"] if name == "sg_lora" else made.draw(text, draws())
    for site, (A, B) in merged.items():
        theirs = cat.combine(site, [Part(*one[site]) for one in means])
        expected = sum(w * one[site][1] @ one[site][0] for w, one in zip(weights, means, strict=True))
        torch.testing.assert_close(B @ A, theirs[1] @ theirs[0])
        torch.testing.assert_close(B @ A, expected)
