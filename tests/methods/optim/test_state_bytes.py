"""The bytes of optimizer state on the LLaMA pretraining models are those of the formulas, to the byte.

One step is taken on the meta device, where tensors have shapes and no numbers.
"""

import math

import pytest
import torch

from lrft.core.params import ParamInfo
from lrft.registry.axes import OPTIMIZERS

VOCABULARY = 32000
# hidden, inter, layers, GaLore's rank, numbers in all
MODELS = {
    "60M": (512, 1376, 8, 128, 58_073_600),
    "130M": (768, 2048, 12, 256, 134_105_856),
    "350M": (1024, 2736, 24, 256, 367_969_280),
    "1B": (2048, 5461, 24, 512, 1_339_082_752),
}
HEADS = {"60M": 8, "130M": 12, "350M": 16, "1B": 32}
every_model = pytest.mark.parametrize("model", MODELS)


def llama(model, dtype):
    hidden, inter, layers, _, _ = MODELS[model]
    shapes = {"embed_tokens": ((VOCABULARY, hidden), "embedding"), "lm_head": ((VOCABULARY, hidden), "head")}
    shapes["norm"] = ((hidden,), "vector")
    for layer in range(layers):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            shapes[f"layers.{layer}.{name}"] = ((hidden, hidden), "matrix")
        for name in ("gate_proj", "up_proj"):
            shapes[f"layers.{layer}.{name}"] = ((inter, hidden), "matrix")
        shapes[f"layers.{layer}.down_proj"] = ((hidden, inter), "matrix")
        for name in ("input_norm", "post_norm"):
            shapes[f"layers.{layer}.{name}"] = ((hidden,), "vector")
    return [
        ParamInfo(
            name,
            torch.nn.Parameter(torch.empty(shape, dtype=dtype, device="meta")),
            role,
            head_rows=hidden // HEADS[model] if name.endswith(("q_proj", "k_proj")) else 0,
        )
        for name, (shape, role) in shapes.items()
    ]


def state_bytes(name, infos, **settings):
    """Bytes of all tensors after one step, single numbers left out."""
    optimizer = OPTIMIZERS.get(name).build(infos, OPTIMIZERS.declared(name).config(method=name, **settings))
    for info in infos:
        info.param.grad = torch.ones_like(info.param)
    optimizer.step()
    held = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return sum(value.nbytes for value in held if value.ndim)


def low_and_rest(infos):
    return [i.param for i in infos if i.role == "matrix"], [i.param for i in infos if i.role != "matrix"]


@every_model
def test_the_models_have_their_published_size(model):
    assert sum(info.param.numel() for info in llama(model, torch.float32)) == MODELS[model][4]


@every_model
def test_adam_mini_takes_four_bytes_a_number_and_four_a_head_row_or_norm(model):
    """45 to 50 % less than AdamW, as published: its second moments are a thousandth of a number each."""
    hidden, inter, layers, _, numbers = MODELS[model]
    blocks = 2 * VOCABULARY + 1 + layers * (2 * HEADS[model] + 2 * hidden + 2 * inter + hidden + 2)
    found = state_bytes("adam_mini", llama(model, torch.float32))
    assert found == 4 * (numbers + blocks)
    assert 0.45 < 1 - found / (8 * numbers) < 0.5


@pytest.mark.parametrize(("model", "gib"), list(zip(MODELS, (0.433, 0.999, 2.742, 9.977), strict=True)))
def test_adamw_takes_eight_bytes_a_number(model, gib):
    found = state_bytes("adamw", llama(model, torch.float32))
    assert found == 8 * MODELS[model][4]
    assert round(found / 2**30, 3) == gib


@pytest.mark.parametrize(("model", "gb"), list(zip(MODELS, (0.280, 0.611, 1.389, 4.763), strict=True)))
def test_galore_in_bfloat16_takes_two_moments_of_its_rank_and_a_projection(model, gb):
    rank = MODELS[model][3]
    infos = llama(model, torch.bfloat16)
    found = state_bytes("galore", infos, rank=rank)
    low, rest = low_and_rest(infos)
    expected = sum(2 * (2 * rank * max(p.shape) + rank * min(p.shape)) for p in low)
    assert found == expected + sum(4 * p.numel() for p in rest)
    weights = 2 * MODELS[model][4]
    assert round((weights + found) / 1e9, 3) == gb


@every_model
def test_galore_in_8_bits_keeps_codes_and_a_scale_a_block(model):
    rank = MODELS[model][3]
    infos = llama(model, torch.bfloat16)
    found = state_bytes("galore", infos, rank=rank, bits=8)
    low, rest = low_and_rest(infos)

    def moments(n):
        return 2 * n + 8 * math.ceil(n / 256) if n >= 4096 else 8 * n

    expected = sum(moments(rank * max(p.shape)) + 2 * rank * min(p.shape) for p in low)
    assert found == expected + sum(moments(p.numel()) for p in rest)


@every_model
@pytest.mark.parametrize("name", ["fira", "apollo"])
def test_fira_and_apollo_take_as_much_as_galore(model, name):
    rank = MODELS[model][3]
    found = state_bytes(name, llama(model, torch.bfloat16), rank=rank)
    assert found == state_bytes("galore", llama(model, torch.bfloat16), rank=rank)


@every_model
def test_apollo_mini_takes_two_numbers_a_channel(model):
    infos = llama(model, torch.bfloat16)
    found = state_bytes("apollo", infos, rank=1, scale_type="tensor", scale=128.0, keep_projection=False)
    low, rest = low_and_rest(infos)
    assert found == sum(2 * 2 * max(p.shape) for p in low) + sum(4 * p.numel() for p in rest)


@pytest.mark.parametrize(
    ("settings", "bytes_each"), [({}, 4), ({"inner": "sgd"}, 2), ({"inner": "sgd", "beta1": 0.0}, 0)]
)
def test_the_inner_optimizer_decides_how_many_moments_a_matrix_has(settings, bytes_each):
    infos = [info for info in llama("60M", torch.bfloat16) if info.role == "matrix"]
    found = state_bytes("galore", infos, rank=128, **settings)
    low = [info.param for info in infos]
    assert found == sum(bytes_each * 128 * max(p.shape) + 2 * 128 * min(p.shape) for p in low)


@pytest.mark.parametrize("shape", [(64, 64), (33, 200)], ids=str)
@pytest.mark.parametrize("name", ["adamw8bit", "galore"])
def test_8_bit_adamw_takes_two_bytes_a_number_and_two_scales_a_block_of_256(name, shape):
    """On real tensors; `galore` stands for the tensors that it does not project."""
    infos = [ParamInfo("w", torch.nn.Parameter(torch.ones(shape)), "head")]
    config = OPTIMIZERS.declared(name).config(method=name, **({"bits": 8} if name == "galore" else {}))
    optimizer = OPTIMIZERS.get(name).build(infos, config)
    infos[0].param.grad = torch.ones(shape)
    optimizer.step()
    tensors = [
        value
        for key, value in optimizer.state[infos[0].param].items()
        if torch.is_tensor(value) and not key.startswith("qmap")
    ]
    n = infos[0].param.numel()
    assert sum(tensor.nbytes for tensor in tensors) == 2 * n + 8 * math.ceil(n / 256)
