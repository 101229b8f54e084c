"""LoRA-FA: LoRA whose A stays where it started."""

import torch

from lrft.core.adapted import Adapted
from lrft.core.params import ParamInfo, Site
from lrft.methods.adapters.lora import LoRA
from lrft.methods.adapters.lora_fa import LoRAFA
from lrft.registry.axes import ADAPTERS, OPTIMIZERS, QUANTIZERS


def make(rank=4, width=24, out=40, **settings):
    torch.manual_seed(0)
    return LoRAFA(LoRAFA.Config(method="lora_fa", rank=rank, **settings), Site("s", width, out))


def infos(adapter):
    return [
        ParamInfo("s.B", adapter.B, "lora_B", "s", scaling=adapter.scaling, partner=adapter.A),
    ]


def test_published_parameter_count():
    """PEFT's results: Llama-3.2-3B, q and v at rank 32."""
    config = LoRAFA.Config(method="lora_fa", rank=32)
    shapes = [(3072, 3072), (1024, 3072)] * 28
    assert sum(LoRAFA.count(config, Site("s", i, o)) for o, i in shapes) == 3_670_016


def test_it_is_lora_but_for_the_frozen_A():
    ours = make(alpha=8.0)
    torch.manual_seed(0)
    plain = LoRA(LoRA.Config(method="lora", rank=4, alpha=8.0), Site("s", 24, 40))
    assert torch.equal(ours.A, plain.A) and ours.scaling == plain.scaling
    assert [name for name, p in ours.named_parameters() if p.requires_grad] == ["B"]
    assert ours.state_dict().keys() == {"A", "B"}
    assert LoRAFA.peft_form().keys(ours.config, False) == LoRA.peft_form().keys(plain.config, False)
    assert "frozen_A" in ADAPTERS.declared("lora_fa").provides


def test_A_stays_bit_for_bit_and_the_change_in_the_rows_of_A_under_weight_decay():
    adapter, base = make(), QUANTIZERS.get("none")(torch.randn(40, 24))
    A = adapter.A.detach().clone()
    config = OPTIMIZERS.declared("lora_fa").config(method="lora_fa", lr=0.01, weight_decay=0.1)
    optimizer = OPTIMIZERS.get("lora_fa").build(infos(adapter), config)
    for _ in range(3):
        adapter(torch.randn(6, 24), base).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(adapter.A, A) and adapter.B.abs().sum() > 0
    P = A.mT @ torch.linalg.inv(A @ A.mT) @ A
    delta = adapter.delta_weight(torch.zeros(40, 24))
    torch.testing.assert_close(delta @ P, delta, rtol=1e-4, atol=1e-6)


def test_a_corrected_sgd_step_moves_the_weight_by_the_projected_gradient():
    """No power of the scale is left: with Adam made linear by a large eps, the step is along -G P."""
    adapter = make(alpha=64.0)
    site = Adapted(QUANTIZERS.get("none")(torch.randn(40, 24)), adapter)
    x, seed = torch.randn(7, 24), torch.randn(7, 40)
    (site(x) * seed).sum().backward()
    eps = 1e4
    config = OPTIMIZERS.declared("lora_fa").config(method="lora_fa", lr=eps, eps=eps, beta1=0.0, beta2=0.0)
    OPTIMIZERS.get("lora_fa").build(infos(adapter), config).step()
    A, G = adapter.A.detach(), seed.mT @ x
    P = A.mT @ torch.linalg.inv(A @ A.mT) @ A
    torch.testing.assert_close(adapter.delta_weight(torch.zeros(40, 24)), -G @ P, rtol=1e-2, atol=1e-2)


def test_the_input_is_not_kept_for_the_backward_pass():
    adapter, base = make(), QUANTIZERS.get("none")(torch.randn(40, 24))
    saved, x = [], torch.randn(100, 24, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        adapter(x, base).sum().backward()
    assert x.numel() not in saved and adapter.A.grad is None


def test_a_restart_leaves_A_frozen():
    adapter = make()
    adapter.reset()
    assert not adapter.A.requires_grad and adapter.B.abs().sum() == 0
