"""The bitsandbytes optimizers: close to AdamW, as small as stated, and whole after a checkpoint."""

import sys

import pytest
import torch

from lrft.core.params import ParamInfo
from lrft.methods.optim import _bnb
from lrft.registry.axes import OPTIMIZERS
from lrft.registry.errors import MissingExtra

pytestmark = pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")


def build(name, *params, role="matrix", **settings):
    config = OPTIMIZERS.declared(name).config(method=name, **settings)
    return OPTIMIZERS.get(name).build([ParamInfo(f"p{i}", p, role) for i, p in enumerate(params)], config)


def run(name, steps=50, device="cpu", **settings):
    """A noisy quadratic; its minimum is at 0."""
    param = torch.nn.Parameter(torch.linspace(-1, 1, 64 * 128).view(64, 128).to(device))
    optimizer = build(name, param, lr=0.01, **settings)
    for t in range(steps):
        noise = torch.randn(64, 128, generator=torch.Generator().manual_seed(t)).to(device)
        param.grad = param.detach() + 0.1 * noise
        optimizer.step()
    return param.detach(), optimizer.state[param]


@pytest.mark.parametrize("name", ["adamw8bit", "paged_adamw8bit"])
def test_8_bit_moments_stay_close_to_adamw(name):
    (found, _), (exact, _) = run(name), run("adamw")
    start = torch.linspace(-1, 1, 64 * 128).view(64, 128)
    assert 0 < ((found - exact).norm() / (exact - start).norm()).item() < 0.03


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_32_bit_moments_are_adamw_up_to_rounding(weight_decay):
    torch.testing.assert_close(
        run("paged_adamw32bit", weight_decay=weight_decay)[0],
        run("adamw", weight_decay=weight_decay)[0],
        rtol=1e-4,
        atol=1e-5,
    )


def test_paging_changes_no_number():
    assert torch.equal(run("adamw8bit")[0], run("paged_adamw8bit")[0])


@pytest.mark.parametrize("shape", [(64, 128), (33, 200)], ids=str)
def test_8_bit_state_takes_two_bytes_a_number_and_two_scales_a_block_of_256(shape):
    param = torch.nn.Parameter(torch.ones(shape))
    optimizer = build("adamw8bit", param)
    param.grad = torch.ones_like(param)
    optimizer.step()
    saved = optimizer.state_dict()["state"][0]
    saved = {**saved, **saved.get(optimizer._FSDP_WRAPPED_QUANT_STATE_KEY, {})}
    tensors = [value for value in saved.values() if torch.is_tensor(value)]
    n = param.numel()
    assert sum(tensor.nbytes for tensor in tensors) == 2 * n + 8 * -(-n // 256)


def test_small_tensors_and_embeddings_keep_float32_moments():
    small, large = torch.nn.Parameter(torch.ones(63, 65)), torch.nn.Parameter(torch.ones(64, 64))
    for params, role, expected in [
        ((small, large), "matrix", [torch.float32, torch.uint8]),
        ((small, large), "embedding", [torch.float32, torch.float32]),
    ]:
        optimizer = build("adamw8bit", *params, role=role)
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
        assert [optimizer.state[param]["state1"].dtype for param in params] == expected


def test_loaded_moments_share_the_code_books_again():
    params = [torch.nn.Parameter(torch.ones(64, 64 + i)) for i in range(2)]
    optimizer, resumed = build("adamw8bit", *params), build("adamw8bit", *params)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    resumed.load_state_dict(optimizer.state_dict())
    first, second = (resumed.state[param] for param in params)
    assert first["qmap1"] is second["qmap1"] and first["qmap2"] is second["qmap2"]
    assert torch.equal(first["qmap2"], optimizer.state[params[0]]["qmap2"])


def test_saving_does_not_disturb_the_running_optimizer():
    param = torch.nn.Parameter(torch.ones(64, 64))
    optimizer = build("adamw8bit", param)
    for _ in range(2):
        param.grad = torch.ones_like(param)
        optimizer.step()
        optimizer.state_dict()
    assert "qmap1" in optimizer.state[param] and "state1" in optimizer.state[param]


@pytest.mark.parametrize("name", ["paged_adamw8bit", "paged_adamw32bit"])
def test_loaded_moments_go_into_the_memory_that_new_ones_get(name, monkeypatch):
    """The meta device stands for a GPU: paging is asked for wherever parameters are not on the CPU."""
    param = torch.nn.Parameter(torch.ones(64, 64))
    optimizer = build(name, param)
    param.grad = torch.ones_like(param)
    optimizer.step()
    twin = torch.nn.Parameter(torch.ones(64, 64, device="meta"))
    resumed = build(name, twin)
    resumed.is_paged = True  # which it is not where parameters are without storage
    made = []

    def get_state_buffer(p, dtype=torch.float32):
        made.append(torch.empty_like(p, dtype=dtype))
        return made[-1]

    monkeypatch.setattr(resumed, "get_state_buffer", get_state_buffer)
    resumed.load_state_dict(optimizer.state_dict())
    held = resumed.state[twin]
    assert held["state1"] is made[0] and held["state2"] is made[1]
    assert made[0].dtype == optimizer.state[param]["state1"].dtype


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["paged_adamw8bit", "paged_adamw32bit"])
def test_a_paged_optimizer_is_paged_again_after_loading(name):
    params = [torch.nn.Parameter(torch.ones(400, 300, device="cuda")) for _ in range(2)]
    optimizer, resumed = (build(name, param, lr=0.01) for param in params)
    for _ in range(2):
        params[0].grad = params[0].detach() * 0.5
        optimizer.step()
    params[1].data.copy_(params[0].data)
    resumed.load_state_dict(optimizer.state_dict())
    assert resumed.state[params[1]]["state1"].is_paged
    for optimizer_, param in zip((optimizer, resumed), params, strict=True):
        param.grad = torch.full_like(param, 0.1)
        optimizer_.step()
    assert torch.equal(*params)


def test_without_bitsandbytes_the_error_gives_the_install_line(monkeypatch):
    _bnb._resumable_adamw.cache_clear()
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(MissingExtra, match=r"optimizer\.method: .*pip install bitsandbytes"):
        build("adamw8bit", torch.nn.Parameter(torch.ones(2, 2)))
