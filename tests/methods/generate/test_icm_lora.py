"""ICM-LoRA: its units, its filling, and the divergence against torch's own."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from lrft.core.generate import Known, Layout
from lrft.methods.generate._normal import Units, divergence
from lrft.registry.errors import UsageError
from tests.methods.generate.made import LAYOUT, WIDTH, draws, generator, library, vector


def test_restoring_what_was_normalised_is_the_adapter_again():
    units = Units(LAYOUT)
    known = library("icm_lora")
    units.take(known)
    vectors = torch.cat([one.samples for one in known])
    normal = units.normalise(vectors)
    torch.testing.assert_close(units.restore(normal), vectors)
    for part in normal.split(LAYOUT.lengths, dim=1):
        assert float(part.mean()) == pytest.approx(0, abs=1e-5)
        assert float(part.std(correction=0)) == pytest.approx(1, abs=1e-5)


def test_a_factor_of_one_value_alone_keeps_its_unit():
    units = Units(Layout({"a.A": (1, 2), "a.B": (2, 1)}))
    units.take([Known("t", torch.tensor([[1.0, 3.0, 0.0, 0.0]]), torch.zeros(1))])
    assert torch.equal(units.restore(units.normalise(torch.ones(4))), torch.ones(4))
    assert units.deviation.tolist() == [1.0, 1.0] and units.mean.tolist() == [2.0, 0.0]


def test_the_divergence_is_that_of_torch_and_0_of_a_distribution_from_itself():
    values = torch.randn(4, 2, 5, generator=draws())
    theirs = kl_divergence(
        Normal(values[0], (0.5 * values[1]).exp()), Normal(values[2], (0.5 * values[3]).exp())
    ).sum(1)
    torch.testing.assert_close(divergence(*values), theirs)
    assert not divergence(values[0], values[1], values[0], values[1]).any()


def test_the_loss_is_the_mean_squared_error_of_the_numbers_there_are_and_the_weighed_divergence():
    """By hand, with the noise drawn again; no term is of the zeros that fill the vector up."""
    made, known = generator("icm_lora", kl=0.25, batch_size=2)
    made.eval()
    assert made.length > LAYOUT.size
    found = made.loss(known, draws(7))
    again = draws(7)
    places = torch.randperm(12, generator=again)[:2].tolist()
    x = made.units.normalise(torch.stack([known[k // 4].samples[k % 4] for k in places]))
    c = torch.stack([known[k // 4].condition for k in places])
    mean, log_variance = made.encode(x, c)
    z = mean + (log_variance / 2).exp() * torch.randn(mean.shape, generator=again)
    error = (made.decode(z, c) - x).square().mean()
    kl = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(1).mean()
    torch.testing.assert_close(found, error + 0.25 * kl)


def test_what_is_decoded_behind_the_vector_is_cut_and_gets_no_gradient():
    made, _ = generator("icm_lora")
    made.eval()
    whole = {}
    made.decoder.register_forward_hook(lambda module, inputs, out: whole.update(out=out))
    made.decoder[-1].register_forward_hook(lambda module, inputs, out: out.retain_grad())
    found = made.decode(torch.randn(1, 4), torch.randn(1, WIDTH))
    assert found.shape == (1, LAYOUT.size) and whole["out"].shape[-1] == made.length
    found.square().sum().backward()
    gradient = whole["out"].grad
    assert not gradient[..., LAYOUT.size :].any() and gradient[..., : LAYOUT.size].all()


def test_a_drawn_adapter_has_the_units_of_the_library_whatever_is_asked_for():
    """Numbers of another scale are another scale drawn: the statistics are the library's, no task's own."""
    made, known = generator("icm_lora")
    far = [Known(one.name, 100 * one.samples, one.condition) for one in known]
    other, _ = generator("icm_lora", far)
    other.load_state_dict({k: v for k, v in made.state_dict().items() if "units" not in k}, strict=False)
    drawn = [vector(one.eval().draw(known[0].condition, draws())) for one in (made, other)]
    torch.testing.assert_close(100 * drawn[0], drawn[1], rtol=1e-4, atol=1e-3)


def test_the_rate_falls_by_a_cosine_over_twice_the_epochs():
    made, known = generator("icm_lora", epochs=4, batch_size=4)
    assert made.steps(known) == 12
    expected = [0.5 * (1 + math.cos(math.pi * epoch / 8)) for epoch in range(4)]
    assert [made.rate(step, 12) for step in (0, 3, 6, 9)] == pytest.approx(expected)
    assert made.rate(2, 12) == 1.0


def test_one_adapter_alone_has_no_batch_to_normalise():
    with pytest.raises(UsageError, match="two adapters or more"):
        generator("icm_lora", library("icm_lora", tasks=1, samples=1))
