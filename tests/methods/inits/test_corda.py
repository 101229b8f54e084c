"""CorDA's own statements, and PEFT's numbers."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lrft.core.params import Site
from lrft.core.stages import Tokens
from lrft.methods.inits.corda import decompose
from lrft.methods.signals.input_cov import InputCov
from lrft.registry.axes import ADAPTERS, INITS

OUT, WIDTH = 14, 20
MODES = pytest.mark.parametrize("mode", ["ipm", "kpm"])


def inputs(count=4, rows=60):
    generator = torch.Generator().manual_seed(2)
    mixing = torch.randn(WIDTH, WIDTH, generator=generator) * torch.logspace(0.5, -0.5, WIDTH)
    return [torch.randn(rows, WIDTH, generator=generator) @ mixing.mT for _ in range(count)]


def covariance():
    cov = InputCov()
    for x in inputs():
        cov.update(x, None, Tokens(torch.arange(len(x)), torch.arange(len(x) - 1)))
    return cov.result()


def weight(out=OUT, width=WIDTH):
    return torch.randn(out, width, generator=torch.Generator().manual_seed(1)) / width**0.5


def started(mode="ipm", rank=4, alpha=8.0, signal=None, **settings):
    """The adapter after CorDA at the weight above."""
    config = ADAPTERS.declared("lora").config(method="lora", rank=rank, alpha=alpha)
    adapter = ADAPTERS.get("lora")(config, Site("a", WIDTH, OUT))
    init = INITS.get("corda")(INITS.declared("corda").config(method="corda", mode=mode, **settings))
    C = covariance() if signal is None else signal
    init.apply(adapter, weight(), dict.fromkeys(init.needs, C), None)
    return adapter


def change(adapter):
    return adapter.delta_weight(weight()).detach()


def test_the_three_factors_multiply_to_the_weight():
    U, S, H = decompose(weight().double(), covariance().double())
    torch.testing.assert_close((U * S) @ H, weight().double(), atol=1e-10, rtol=1e-8)
    assert (S.diff() <= 0).all()


def test_ipm_is_the_best_rank_r_change_on_the_damped_inputs():
    """||(W - s B A) C'|| is what the leading r singular values of W C' leave."""
    C = covariance()
    damped = C + 0.01 * C.diagonal().mean() * torch.eye(WIDTH)
    values = torch.linalg.svdvals(weight() @ damped)
    left = ((weight() - change(started("ipm"))) @ damped).norm()
    torch.testing.assert_close(left, values[4:].norm(), atol=1e-4, rtol=1e-4)
    left = ((weight() - change(started("kpm"))) @ damped).norm()
    torch.testing.assert_close(left, values[:-4].norm(), atol=1e-4, rtol=1e-4)


def test_kpm_disturbs_outputs_on_those_inputs_less_than_ipm():
    x = torch.cat(inputs())
    assert (x @ change(started("kpm")).mT).norm() < 0.2 * (x @ change(started("ipm")).mT).norm()


@MODES
def test_all_components_are_the_weight(mode):
    torch.testing.assert_close(change(started(mode, rank=OUT)), weight(), atol=1e-4, rtol=1e-3)


@MODES
def test_the_scale_of_the_covariance_moves_between_the_factors_and_leaves_the_product(mode):
    one, other = started(mode), started(mode, signal=9.0 * covariance())
    torch.testing.assert_close(change(one), change(other), atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(3.0 * one.B, other.B, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(one.A / 3.0, other.A, atol=1e-4, rtol=1e-3)


@MODES
@pytest.mark.parametrize("alpha", [2.0, 16.0])
def test_alpha_does_not_change_what_the_base_gives_up(mode, alpha):
    torch.testing.assert_close(
        change(started(mode, alpha=alpha)), change(started(mode)), atol=1e-5, rtol=1e-4
    )


def test_a_covariance_of_too_few_inputs_is_damped_until_it_inverts():
    x = torch.ones(1, WIDTH)
    singular = x.mT @ x
    assert change(started(signal=singular)).isfinite().all()
    U, S, H = decompose(weight(), singular)
    torch.testing.assert_close((U * S) @ H, weight(), atol=1e-3, rtol=1e-2)


def test_the_damping_doubles_until_the_inverse_is_one():
    """A matrix so badly scaled that d = 0.01 cannot be inverted in float32."""
    from lrft.methods.inits.corda import _damped

    C = torch.zeros(400, 400)
    direction = torch.randn(400, generator=torch.Generator().manual_seed(0))
    C += 1e6 * direction[:, None] * direction
    damped, inverse = _damped(C)
    assert torch.dist(damped @ inverse, torch.eye(400)) < 0.05
    added = (damped - C).diagonal().median() / C.diagonal().mean()
    doublings = torch.log2(added / 0.01)
    assert doublings >= -0.1 and (doublings - doublings.round()).abs() < 0.1


def test_a_covariance_that_says_nothing_is_refused():
    with pytest.raises(ValueError, match="not finite or zero"):
        started(signal=torch.zeros(WIDTH, WIDTH))


def test_a_rank_beyond_the_weight_is_refused():
    with pytest.raises(ValueError, match="14 components, fewer than rank 15"):
        started(rank=15)


def test_other_rows_are_measured_where_data_is_given():
    config = INITS.declared("corda").config
    plain, other = (INITS.get("corda")(c) for c in (config(), config(data={"source": "a.jsonl"})))
    assert plain.needs == ("input_cov",) and plain.sources() == {}
    assert other.needs == ("input_cov@data",) and other.sources()["data"].source == "a.jsonl"
    torch.testing.assert_close(started(data={"source": "a.jsonl"}).A, started().A)


@MODES
def test_the_factors_are_pefts(mode, monkeypatch):
    pytest.importorskip("peft")
    # Its module asks attrs, which PEFT does not depend on, for what the standard library has.
    monkeypatch.setitem(sys.modules, "attr", SimpleNamespace(dataclass=dataclass))
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda

    model = nn.Sequential(nn.Linear(WIDTH, OUT, bias=False))
    model[0].weight.data = weight()
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["0"],
        init_lora_weights="corda",
        corda_config=CordaConfig(corda_method=mode),
    )
    preprocess_corda(model, config, run_model=lambda: [model(x[None]) for x in inputs()])
    theirs = get_peft_model(model, config).base_model.model[0]
    ours = started(mode)
    # One sign for both factors of a component is free.
    signs = (theirs.lora_A["default"].weight * ours.A).sum(1).sign()
    torch.testing.assert_close(signs[:, None] * ours.A, theirs.lora_A["default"].weight, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(ours.B * signs, theirs.lora_B["default"].weight, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(weight() - change(ours), theirs.base_layer.weight, atol=1e-5, rtol=1e-3)
