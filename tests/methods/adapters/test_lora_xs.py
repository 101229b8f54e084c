"""LoRA-XS's own statements."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lrft.core.adapted import Adapted
from lrft.core.params import Site
from lrft.methods.adapters.lora_xs import LoRAXS
from lrft.methods.quant.none import Dense
from lrft.registry.axes import ADAPTERS


def make(rank=4, out=24, width=16, **settings):
    torch.manual_seed(0)
    weight = torch.randn(out, width) / width**0.5
    adapter = LoRAXS(LoRAXS.Config(method="lora_xs", rank=rank, **settings), Site("a", width, out))
    adapter.start(weight)
    return Adapted(Dense(weight), adapter), weight


def train(site, steps=3):
    optimizer = torch.optim.AdamW([p for p in site.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        site(torch.randn(8, 16)).square().sum().backward()
        optimizer.step()


def test_training_moves_the_core_and_not_one_bit_of_the_frame():
    site, _ = make()
    before = {key: tensor.clone() for key, tensor in site.adapter.state_dict().items()}
    train(site)
    after = site.adapter.state_dict()
    assert torch.equal(after["A"], before["A"]) and torch.equal(after["B"], before["B"])
    assert not torch.equal(after["R"], before["R"])
    assert site.adapter.A.grad is None and site.adapter.B.grad is None


@pytest.mark.parametrize(("rank", "published"), [(32, 229_376), (64, 917_504), (96, 2_064_384)])
def test_counts_are_those_of_the_lora_sb_tables_for_mistral_7b(rank, published):
    config = LoRAXS.Config(method="lora_xs", rank=rank)
    shapes = [
        (4096, 4096),
        (1024, 4096),
        (1024, 4096),
        (4096, 4096),
        (14336, 4096),
        (14336, 4096),
        (4096, 14336),
    ]
    per_layer = sum(LoRAXS.count(config, Site("a", width, out)) for out, width in shapes)
    assert 32 * per_layer == published


def test_the_start_is_the_principal_frame_of_the_weight_and_changes_nothing():
    site, weight = make()
    U, S, Vh = torch.linalg.svd(weight)
    torch.testing.assert_close(
        site.adapter.B @ site.adapter.A, (U[:, :4] * S[:4]) @ Vh[:4], atol=1e-5, rtol=1e-4
    )
    assert torch.equal(site.merged_weight(), weight)


def test_the_core_acts_on_the_left_of_A_x():
    site, weight = make(alpha=12.0)
    core = torch.randn(4, 4)
    with torch.no_grad():
        site.adapter.R.copy_(core)
    x = torch.randn(5, 16)
    inner = F.linear(F.linear(x, site.adapter.A), core)
    torch.testing.assert_close(
        site(x), F.linear(x, weight) + 3 * F.linear(inner, site.adapter.B), atol=1e-5, rtol=1e-4
    )


def test_at_full_rank_it_can_express_any_change():
    site, weight = make(rank=16, out=16)
    target = torch.randn(16, 16)
    A, B = site.adapter.A, site.adapter.B
    with torch.no_grad():
        site.adapter.R.copy_(torch.linalg.inv(B) @ target @ torch.linalg.inv(A))
    torch.testing.assert_close(site.adapter.delta_weight(weight), target, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("settings", "scaling"), [({}, 1.0), ({"alpha": 8.0}, 2.0), ({"alpha": 8.0, "rslora": True}, 4.0)]
)
def test_the_scale_is_1_unless_alpha_says_otherwise(settings, scaling):
    site, _ = make(**settings)
    assert site.adapter.scaling == scaling
    assert site.adapter.config.for_site("a").rank == 4


def test_the_peft_form_is_a_plain_lora_of_the_same_rank():
    site, weight = make(alpha=12.0)
    train(site)
    tensors, keys = (
        site.adapter.peft.tensors(site.adapter, None),
        site.adapter.peft.keys(site.adapter.config, False),
    )
    assert tensors.keys() == {"A", "B"} and keys["r"] == 4 and keys["lora_alpha"] == 12.0
    change = keys["lora_alpha"] / keys["r"] * tensors["B"] @ tensors["A"]
    torch.testing.assert_close(weight + change, site.merged_weight(), atol=1e-5, rtol=1e-4)
    A, B = site.adapter.factors()
    torch.testing.assert_close(B @ A, change, atol=1e-5, rtol=1e-4)


def test_peft_loads_it(tmp_path):
    peft = pytest.importorskip("peft")
    site, _ = make(alpha=12.0)
    train(site)
    keys = dict(site.adapter.peft.keys(site.adapter.config, False))
    keys.pop("peft_type")
    model = torch.nn.Sequential(torch.nn.Linear(16, 24, bias=False))
    model[0].weight.data.copy_(site.base.weight())
    theirs = peft.get_peft_model(model, peft.LoraConfig(target_modules=["0"], **keys))
    layer = theirs.base_model.model[0]
    tensors = site.adapter.peft.tensors(site.adapter, None)
    layer.lora_A["default"].weight.data.copy_(tensors["A"])
    layer.lora_B["default"].weight.data.copy_(tensors["B"])
    x = torch.randn(5, 16)
    torch.testing.assert_close(theirs(x), site(x), atol=1e-5, rtol=1e-4)


def test_a_restart_keeps_the_frame_and_empties_the_core():
    site, _ = make()
    train(site)
    x, frame = torch.randn(5, 16), site.adapter.A.clone()
    before = site(x)
    site.fold()
    torch.testing.assert_close(site(x), before, atol=1e-5, rtol=1e-4)
    assert torch.equal(site.adapter.A, frame) and not site.adapter.R.any()
    train(site)
    assert site.adapter.R.any()


def test_the_input_is_not_kept_for_the_backward_pass():
    site, _ = make()
    x, kept = torch.randn(1000, 16), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        site(x)
    assert max(kept) <= 1000 * 4


def test_the_change_since_a_start_is_that_of_the_core_alone():
    site, weight = make()
    start = ADAPTERS.get("lora_xs")(site.adapter.config, site.adapter.site)
    train(site, 1)
    start.load_state_dict(site.adapter.state_dict())
    train(site, 2)
    x = torch.randn(5, 16)
    moved = (site.adapter.delta_weight(weight) - start.delta_weight(weight)).detach()
    torch.testing.assert_close(
        site.adapter.forward_since(start, x, site.base), F.linear(x, weight + moved), atol=1e-5, rtol=1e-4
    )
    A, B = site.adapter.factors(start)
    assert len(A) == 4
    torch.testing.assert_close(B @ A, moved, atol=1e-5, rtol=1e-4)


def test_a_rank_beyond_the_weight_is_refused_with_the_largest_that_works():
    with pytest.raises(ValueError, match="use at most 16"):
        make(rank=17)
