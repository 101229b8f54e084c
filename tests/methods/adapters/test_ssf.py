"""SSF's own statements: norms of every form, biases, the count of the paper's table, and the merge that is refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from lrft.api.merging import options as merge_options
from lrft.core.adapted import Adapted
from lrft.core.block import AdaptedBlock
from lrft.core.params import Site
from lrft.core.stages import SitePlan
from lrft.methods.adapters.ssf import SSF
from lrft.methods.quant.none import Dense
from lrft.registry.errors import NotMergeable
from tests.kept import keeping


def config(**settings):
    return SSF.Config(method="ssf", **{"std": 0.3, **settings})


def linear(bias=True, dtype=torch.float32, **settings):
    torch.manual_seed(0)
    adapter = SSF.at(config(**settings), Site("a", 16, 24, has_bias=bias))
    return Adapted(Dense(torch.randn(24, 16).to(dtype), torch.randn(24).to(dtype) if bias else None), adapter)


@pytest.mark.parametrize(
    ("norm", "offset", "shift"),
    [(LlamaRMSNorm, 0, False), (Gemma2RMSNorm, 1, False), (nn.LayerNorm, 0, True), (nn.LayerNorm, 0, False)],
)
def test_a_norm_with_the_merged_numbers_is_the_scaled_and_shifted_one(norm, offset, shift):
    torch.manual_seed(0)
    block = norm(16).requires_grad_(False)
    for parameter in block.parameters():
        parameter.normal_()
    has_bias = getattr(block, "bias", None) is not None
    part = SSF.at(config(shift=shift), Site("n", 16, 16, has_bias=has_bias, kind="norm"))
    part.fit(block)
    site, x = AdaptedBlock(block, part), torch.randn(2, 5, 16)
    assert part.offset == offset
    torch.testing.assert_close(site(x), block(x) * part.gamma + (part.beta if shift else 0))
    merged = norm(16)
    with torch.no_grad():
        for name, (_, after) in site.merged_parameters().items():
            merged.get_parameter(name).copy_(after)
    torch.testing.assert_close(site(x), merged(x), atol=1e-5, rtol=1e-5)


class Halved(LlamaRMSNorm):
    def forward(self, x):
        return super().forward(x) * 0.5 + x


def test_a_norm_of_another_form_is_refused():
    part = SSF.at(config(), Site("n", 16, 16, kind="norm"))
    with pytest.raises(ValueError, match="multiplies by something else"):
        part.fit(Halved(16).requires_grad_(False))


def test_the_bias_is_scaled_before_the_offset_is_added_and_so_is_one_that_trains():
    x = torch.randn(5, 16)
    constant = linear()
    gamma, beta, bias = constant.adapter.gamma, constant.adapter.beta, constant.base.bias
    expected = gamma * F.linear(x, constant.base.weight(), bias) + beta
    torch.testing.assert_close(constant(x), expected)
    torch.testing.assert_close(constant.merged_bias(), gamma * bias + beta)
    trained = linear()
    trained.base.bias = None
    trained.train_bias(nn.Parameter(bias.clone()))
    torch.testing.assert_close(trained(x), expected)
    torch.testing.assert_close(trained.merged_bias(), gamma * bias + beta)
    trained(x).sum().backward()
    torch.testing.assert_close(trained.bias.grad, 5 * gamma.detach())


def test_what_is_scaled_is_kept_once_in_its_own_precision():
    site = linear(dtype=torch.bfloat16)
    own = {b.data_ptr() for b in site.base.buffers()}
    with keeping() as kept:
        y = site(torch.randn(4096, 16).bfloat16().requires_grad_())
    del y
    assert [size for place, size in kept.items() if place not in own and size > 4096] == [4096 * 24 * 2]


def test_the_count_of_the_papers_table_on_a_vision_transformer():
    """ViT-B/16: six operations a block, the patch embedding and the last norm; 0.28 million with a head of 100."""
    per_block = [768, 768, 2304, 768, 3072, 768]
    count = sum(SSF.count(config(), Site("a", 1, out)) for out in [*(12 * per_block), 768, 768])
    assert count == 205_824 and count + 768 * 100 + 100 == 282_724


def test_by_default_it_begins_near_the_base_and_with_std_0_as_it():
    part = SSF(SSF.Config(method="ssf"), Site("a", 4, 10_000))
    gamma, beta = part.gamma.detach(), part.beta.detach()
    assert float(gamma.std()) == pytest.approx(0.02, rel=0.05) == float(beta.std())
    assert float(gamma.mean()) == pytest.approx(1, abs=1e-3)
    exact = SSF(config(std=0.0), Site("a", 4, 10))
    assert exact.gamma.eq(1).all() and exact.beta.eq(0).all()


def test_an_offset_without_a_bias_to_go_to_is_refused_before_a_model_is_loaded(monkeypatch):
    for kind in ("linear", "norm"):
        site = Site("layers.0.a", 16, 16, kind=kind)
        assert SSF.why_not_merged(config(shift=False), site) == ""
        planned = {"layers.0.a": SitePlan(site, config()).record()}
        said = SimpleNamespace(recipe=SimpleNamespace(adapter=config()))
        monkeypatch.setattr(merge_options, "own_recipe", lambda path, said=said: said)
        monkeypatch.setattr(merge_options, "open_chosen", lambda folder: keeping())
        monkeypatch.setattr(merge_options, "plan_of", lambda saved, folder, planned=planned: planned)
        with pytest.raises(NotMergeable, match=r"layers\.0\.a an offset.*adapter\.shift: false"):
            merge_options.check_planned(SimpleNamespace(path=None))
    with pytest.raises(NotMergeable, match=r"adapter\.shift: false"):
        linear(bias=False).merged_bias()
