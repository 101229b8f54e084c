"""LoRA-FA's optimizer: the projection it promises, and PEFT's numbers."""

import pytest
import torch
from torch import nn

from lrft.core.params import ParamInfo
from lrft.methods.optim.lora_fa import corrected
from lrft.registry.axes import OPTIMIZERS

M, N, R = 20, 12, 4


def tensor(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def build(infos, **settings):
    config = OPTIMIZERS.declared("lora_fa").config(method="lora_fa", **settings)
    return OPTIMIZERS.get("lora_fa").build(infos, config)


def pair(name, A, B, scaling):
    return ParamInfo(f"{name}.B", nn.Parameter(B), "lora_B", name, scaling=scaling, partner=A)


@pytest.mark.parametrize("scaling", [0.5, 1.0, 8.0])
def test_the_product_moves_by_the_full_gradient_projected_on_the_rows_of_A(scaling):
    A, G = tensor(R, N, seed=1, dtype=torch.float64), tensor(M, N, seed=2, dtype=torch.float64)
    found = scaling * corrected(scaling * G @ A.mT, A, scaling, 1e-300) @ A
    torch.testing.assert_close(found, G @ A.mT @ torch.linalg.inv(A @ A.mT) @ A, rtol=0, atol=1e-13)


def test_with_orthonormal_rows_and_scale_one_the_correction_is_the_identity():
    A, gB = torch.linalg.qr(tensor(N, R))[0].mT, tensor(M, R, seed=3)
    torch.testing.assert_close(corrected(gB, A, 1.0, 1e-8), gB)


class Two(nn.Module):
    """Two linear layers with a norm that trains between them."""

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(N, M, bias=False)
        self.norm = nn.LayerNorm(M)
        self.down = nn.Linear(M, N, bias=False)

    def forward(self, x):
        return self.down(self.norm(self.up(x)))


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"rank_pattern": {"down": 2}}], ids=str)
def test_every_step_is_that_of_peft(settings, monkeypatch):
    """Without its bfloat16 autocast, which rounds the correction."""
    peft = pytest.importorskip("peft")
    lorafa = pytest.importorskip("peft.optimizers.lorafa")
    monkeypatch.setattr(lorafa, "is_bf16_available", lambda: False)
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=R, lora_alpha=10, target_modules=["up", "down"], modules_to_save=["norm"], **settings
    )
    theirs = peft.get_peft_model(Two(), config)
    reference = lorafa.create_lorafa_optimizer(theirs, r=R, lora_alpha=10, lr=0.01, weight_decay=0.1)

    tensors = dict(theirs.named_parameters())
    trained = {name: nn.Parameter(t.detach().clone()) for name, t in tensors.items() if t.requires_grad}
    infos = []
    for name, twin in trained.items():
        if "lora_B" not in name:
            infos.append(ParamInfo(name, twin, "vector"))
            continue
        module = theirs.get_submodule(name.rpartition(".lora_B")[0])
        A = tensors[name.replace("lora_B", "lora_A")]
        infos.append(
            ParamInfo(
                name, twin, "lora_B", name, scaling=module.scaling["default"], partner=A.detach().clone()
            )
        )
    assert {info.role for info in infos} == {"lora_B", "vector"}
    ours = build(infos, lr=0.01, weight_decay=0.1)
    for t in range(6):
        reference.zero_grad()
        theirs(tensor(5, N, seed=t)).square().mean().backward()
        for name, twin in trained.items():
            twin.grad = tensors[name].grad.clone()
        reference.step()
        ours.step()
        for name, twin in trained.items():
            torch.testing.assert_close(twin.data, tensors[name].data, rtol=1e-5, atol=1e-6)
            twin.data.copy_(tensors[name].data)


def test_adam_has_eps_before_its_bias_correction_and_decays_after():
    A, B = torch.linalg.qr(tensor(N, R))[0].mT, tensor(M, R, seed=1)
    info = pair("s", A, B.clone(), 1.0)
    optimizer = build([info], lr=0.1, weight_decay=0.5, eps=0.3, beta1=0.8, beta2=0.9)
    m, v = 0.0, 0.0
    for t in range(1, 4):
        g = tensor(M, R, seed=10 + t)
        info.param.grad = g.clone()
        optimizer.step()
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
        B = B - 0.1 * (1 - 0.9**t) ** 0.5 / (1 - 0.8**t) * m / (v.sqrt() + 0.3)
        B = B * (1 - 0.1 * 0.5)
        torch.testing.assert_close(info.param.data, B, rtol=1e-4, atol=1e-5)


def test_B_alone_has_state_and_each_site_its_own_scale():
    first, second = tensor(R, N), tensor(R, N)
    infos = [pair("a", first, torch.zeros(M, R), 1.0), pair("b", second, torch.zeros(M, R), 4.0)]
    optimizer = build(infos, lr=0.1, eps=1e3)  # so large an eps makes the step linear in the gradient
    for info in infos:
        info.param.grad = tensor(M, R, seed=5)
    optimizer.step()
    torch.testing.assert_close(infos[0].param.data, 16 * infos[1].param.data, rtol=1e-4, atol=0)
    held = [t for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t)]
    assert sum(t.nbytes for t in held) == 8 * 2 * M * R


def test_what_is_no_pair_with_a_frozen_A_is_refused():
    A, B = nn.Parameter(tensor(R, N)), nn.Parameter(tensor(M, R))
    with pytest.raises(
        ValueError, match=r"needs the factor A frozen, and it trains \(s.A\); choose adapter lora_fa"
    ):
        build([ParamInfo("s.A", A, "lora_A", "s", partner=B), ParamInfo("s.B", B, "lora_B", "s", partner=A)])
    with pytest.raises(ValueError, match=r"it trains \(s.B\)"):
        build([ParamInfo("s.B", B, "lora_B", "s", partner=A)])
    with pytest.raises(ValueError, match="other factor is not known"):
        build([ParamInfo("s.B", B, "lora_B", "s")])
