"""LoRA's own statements."""

from __future__ import annotations

import math

import pytest
import torch

from lrft.core.params import Site
from lrft.methods.adapters.lora import LoRA
from lrft.ops.dropout import drop
from lrft.registry.axes import QUANTIZERS

LLAMA_7B = {"q": (4096, 4096), "k": (4096, 4096), "v": (4096, 4096), "o": (4096, 4096)}
LLAMA_7B |= {"gate": (11008, 4096), "up": (11008, 4096), "down": (4096, 11008)}


def make(**settings):
    config = LoRA.Config(method="lora", **settings)
    return LoRA(config, Site("layers.0.q_proj", 24, 40))


def count(shapes, layers, **settings):
    config = LoRA.Config(method="lora", **settings)
    return layers * sum(LoRA.count(config, Site("s", i, o)) for o, i in shapes)


def test_published_parameter_counts():
    assert count(LLAMA_7B.values(), 32, rank=64) == 159_907_840  # VeRA paper, instruction tuning
    dora = [LLAMA_7B[key] for key in ("q", "k", "v", "up", "down")]
    assert count(dora, 32, rank=32) == 56_098_816  # DoRA paper, 0.83 %
    assert count([(768, 768)] * 2, 12, rank=8) == 294_912  # LoRA paper, RoBERTa-base
    assert count([(3072, 3072), (1024, 3072)], 28, rank=32) == 9_175_040  # PEFT's Llama-3.2-3B results


def test_rslora_scales_by_the_root_of_the_rank():
    assert make(rank=16, alpha=32.0).scaling == 2.0
    assert make(rank=16, alpha=32.0, rslora=True).scaling / make(rank=16, alpha=32.0).scaling == math.sqrt(16)


def test_at_step_0_only_B_has_a_gradient():
    adapter = make(rank=4)
    base = QUANTIZERS.get("none")(torch.randn(40, 24))
    adapter(torch.randn(3, 24), base).sum().backward()
    assert adapter.A.grad.abs().sum() == 0
    assert adapter.B.grad.abs().sum() > 0


def test_the_start_of_A_is_uniform_within_one_over_the_root_of_in():
    A = LoRA(LoRA.Config(method="lora", rank=64), Site("s", 400, 8)).A
    assert A.abs().max() <= 1 / math.sqrt(400)
    assert A.std().item() == pytest.approx(1 / math.sqrt(3 * 400), rel=0.02)


def test_the_update_has_at_most_the_rank():
    adapter = make(rank=3)
    torch.nn.init.normal_(adapter.B)
    assert torch.linalg.matrix_rank(adapter.delta_weight(torch.zeros(40, 24))) == 3


def test_dropout_touches_the_adapter_path_alone():
    adapter, base = make(rank=4, dropout=0.5), QUANTIZERS.get("none")(torch.randn(40, 24))
    x = torch.randn(3, 24)
    assert torch.equal(
        adapter(x, base), base(x)
    )  # B is 0, so any difference would be the base seeing dropped x
    torch.nn.init.normal_(adapter.B)
    torch.manual_seed(0)
    got = adapter(x, base)
    torch.manual_seed(0)
    dropped = drop(x.clone(), 0.5).whole(x)
    torch.testing.assert_close(got, base(x) + adapter.scaling * dropped @ adapter.A.mT @ adapter.B.mT)
    torch.testing.assert_close(adapter.eval()(x, base), base(x) + x @ adapter.delta_weight(base.weight()).mT)


def test_patterns_set_rank_and_alpha_by_the_end_of_the_name():
    config = LoRA.Config(
        method="lora", rank=8, rank_pattern={"q_proj": 4, "layers.1.q_proj": 2}, alpha_pattern={"*.0.*": 5.0}
    )
    assert config.for_site("model.layers.0.q_proj").rank == 4
    assert config.for_site("model.layers.1.q_proj").rank == 2
    assert config.for_site("model.layers.0.k_proj").rank == 8
    assert config.for_site("model.layers.0.k_proj").alpha == 5.0
    assert config.for_site("model.layers.1.k_proj").alpha == 32.0


def test_a_frozen_A_keeps_no_input():
    adapter, base = make(rank=4), QUANTIZERS.get("none")(torch.randn(40, 24))
    adapter.A.requires_grad_(False)
    saved = []
    x = torch.randn(100, 24, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        adapter(x, base).sum().backward()
    assert x.numel() not in saved
