"""Adam-mini: its blocks, its bytes, and its steps beside torch's AdamW on gradients that are alike in a block."""

import pytest
import torch

from lrft.core.params import ParamInfo
from lrft.methods.optim.adam_mini import AdamMini, blocks_of

HEAD = 4  # rows of a head
SHAPES = {
    "layers.0.q_proj.weight": ((16, 12), "matrix"),
    "layers.0.k_proj.weight": ((8, 12), "matrix"),
    "layers.0.v_proj.weight": ((8, 12), "matrix"),
    "layers.0.mlp.weight": ((20, 12), "matrix"),
    "layers.0.q_proj.bias": ((16,), "vector"),
    "layers.0.norm.weight": ((12,), "vector"),
    "embed_tokens.weight": ((30, 12), "embedding"),
    "lm_head.weight": ((30, 12), "head"),
}


def parameters(dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    return [
        ParamInfo(
            name,
            torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype).to(device)),
            role,
            head_rows=HEAD if name.endswith(("q_proj.weight", "k_proj.weight")) else 0,
        )
        for name, (shape, role) in SHAPES.items()
    ]


def build(infos, **settings):
    return AdamMini.build(infos, AdamMini.Config(method="adam_mini", **{"lr": 0.01, **settings}))


def noise(info, t):
    generator = torch.Generator().manual_seed(1000 * t + info.param.numel())
    return torch.randn(info.param.shape, generator=generator)


def blocks(name, grad):
    """Every block's mean, at the place of each of its numbers, by loops over the table of the docstring."""
    out = torch.empty_like(grad)
    if name.endswith(("q_proj.weight", "k_proj.weight")):
        for first in range(0, len(grad), HEAD):
            out[first : first + HEAD] = grad[first : first + HEAD].mean()
    elif "norm" in name:
        out[:] = grad.mean()
    elif "bias" in name:
        out[:] = grad
    else:
        for row in range(len(grad)):
            out[row] = grad[row].mean()
    return out


def test_steps_follow_the_equations_with_the_blocks_of_every_kind():
    infos = parameters()
    optimizer = build(infos, weight_decay=0.1, beta2=0.95)
    p = {info.name: info.param.detach().double() for info in infos}
    m, v = dict.fromkeys(p, 0.0), dict.fromkeys(p, 0.0)
    for t in range(1, 5):
        for info in infos:
            info.param.grad = noise(info, t)
            g = info.param.grad.double()
            m[info.name] = 0.9 * m[info.name] + 0.1 * g
            v[info.name] = 0.95 * v[info.name] + 0.05 * blocks(info.name, g**2)
            direction = m[info.name] / (1 - 0.9**t) / ((v[info.name] / (1 - 0.95**t)).sqrt() + 1e-8)
            decay = 0.0 if "vector" in info.role else 0.1
            p[info.name] = p[info.name] * (1 - 0.01 * decay) - 0.01 * direction
        optimizer.step()
    for info in infos:
        torch.testing.assert_close(info.param.detach().double(), p[info.name], rtol=1e-5, atol=1e-6)


def test_where_a_blocks_gradients_have_one_size_it_is_adamw():
    infos, twins = parameters(), parameters()
    ours = build(infos, weight_decay=0.0)
    theirs = torch.optim.AdamW([twin.param for twin in twins], lr=0.01, weight_decay=0.0)
    for t in range(4):
        for info, twin in zip(infos, twins, strict=True):
            signs = noise(info, t).sign()
            info.param.grad, twin.param.grad = (t + 1) * signs, (t + 1) * signs
        ours.step()
        theirs.step()
    for info, twin in zip(infos, twins, strict=True):
        torch.testing.assert_close(info.param, twin.param, rtol=1e-6, atol=1e-6)


def test_it_is_the_authors_package_step_for_step():
    theirs = pytest.importorskip("adam_mini").Adam_mini
    infos, twins = parameters(), parameters()
    names = {"layers.0.mlp.weight": "layers.0.mlp.up.weight"}
    named = [(names.get(twin.name, twin.name), twin.param) for twin in twins]
    ours = build(infos, weight_decay=0.1)
    other = theirs(named, lr=0.01, betas=(0.9, 0.999), weight_decay=0.1, dim=12, n_heads=3, n_kv_heads=3)
    for t in range(5):
        for info, twin in zip(infos, twins, strict=True):
            info.param.grad, twin.param.grad = noise(info, t), noise(info, t)
        ours.step()
        other.step()
    for info, twin in zip(infos, twins, strict=True):
        torch.testing.assert_close(info.param, twin.param, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_state_is_four_bytes_a_number_and_four_a_block(dtype):
    infos = parameters(dtype)
    optimizer = build(infos)
    for info in infos:
        info.param.grad = torch.ones_like(info.param)
    optimizer.step()
    counts = dict(zip(SHAPES, (4, 2, 8, 20, 16, 1, 30, 30), strict=True))
    for info in infos:
        held = [t for t in optimizer.state[info.param].values() if torch.is_tensor(t)]
        found = sum(t.nbytes for t in held)
        assert found == 4 * (info.param.numel() + counts[info.name])
        assert found == AdamMini.state_bytes(info, None)


def test_a_weight_stored_the_other_way_round_has_its_output_neurons_in_columns():
    info = ParamInfo("w", torch.nn.Parameter(torch.zeros(12, 20)), "matrix", transposed=True)
    assert blocks_of(info) == ((12, 20), 0)
    assert AdamMini.state_bytes(info, None) == 4 * (240 + 20)


@pytest.mark.parametrize(
    ("shape", "role", "expected"),
    [((4, 30), "lora_A", 4), ((20, 4), "lora_B", 20), ((20,), "magnitude", 20), ((3, 4, 30), "lora_A", 12)],
)
def test_tensors_of_adapters_go_by_rows(shape, role, expected):
    info = ParamInfo("s.x", torch.nn.Parameter(torch.zeros(shape)), role, "s")
    assert AdamMini.state_bytes(info, None) == 4 * (info.param.numel() + expected)
