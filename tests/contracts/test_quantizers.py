"""What every storage format promises, whatever its name."""

import copy

import pytest
import torch
from torch.nn import functional as F

from lrft.registry.axes import QUANTIZERS

SHAPES = [(64, 128), (48, 96), (7, 13), (5, 66), (1, 3), (130, 1)]
DTYPES = [torch.float32, torch.bfloat16]

every_format = pytest.mark.parametrize("name", QUANTIZERS.names())
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16"])
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def make(name, shape=(48, 96), dtype=torch.float32, bias=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator).mul(0.02).to(dtype)
    own_bias = torch.randn(shape[0], generator=generator).to(dtype) if bias else None
    return QUANTIZERS.get(name)(weight, own_bias), weight, own_bias


def inputs(layer, dtype=torch.float32):
    x = torch.randn(2, 5, layer.in_features, generator=torch.Generator().manual_seed(1)).to(dtype)
    return x.requires_grad_()


def relative(found, expected):
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()


@every_format
@every_dtype
@every_shape
def test_the_weight_read_back_is_the_weight_stored_up_to_the_rounding_of_the_format(name, dtype, shape):
    layer, weight, _ = make(name, shape, dtype)
    read = layer.weight()
    assert (read.shape, read.dtype) == (weight.shape, dtype)
    assert relative(read, weight) < 0.2
    largest = weight.float().abs().max()
    # Nearly all keep the largest weight itself; a fitted zero point moves it by a part of a step.
    assert read.float().abs().max() == pytest.approx(largest.item(), rel=0.04)


@every_format
@every_dtype
@every_shape
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_forward_is_the_linear_map_of_the_weight_read_back(name, dtype, shape, bias):
    layer, _, own_bias = make(name, shape, dtype, bias)
    x = inputs(layer, dtype)
    assert torch.equal(layer(x), F.linear(x, layer.weight(), own_bias))


@every_format
@every_dtype
@every_shape
def test_the_input_gradient_is_the_output_gradient_times_the_weight_read_back(name, dtype, shape):
    layer, _, _ = make(name, shape, dtype)
    x = inputs(layer, dtype)
    dy = torch.randn(2, 5, layer.out_features, generator=torch.Generator().manual_seed(2)).to(dtype)
    layer(x).backward(dy)
    torch.testing.assert_close(x.grad, dy @ layer.weight())


@every_format
def test_nothing_in_a_frozen_layer_trains(name):
    layer, _, _ = make(name)
    assert list(layer.parameters()) == []
    assert not any(buffer.requires_grad for buffer in layer.buffers())
    assert not layer(inputs(layer).detach()).requires_grad


@every_format
@every_dtype
def test_writing_back_what_was_read_changes_next_to_nothing_and_marks_the_base_as_edited(name, dtype):
    layer, _, _ = make(name, dtype=dtype)
    assert layer.edited is False
    read = layer.weight().clone()
    layer.write(read)
    assert layer.edited is True
    assert relative(layer.weight(), read) < 3e-3


@every_format
def test_a_written_weight_replaces_the_old_one(name):
    layer, _, _ = make(name)
    _, other, _ = make(name, seed=5)
    layer.write(other.double())
    assert layer.weight().dtype == torch.float32
    assert torch.equal(layer.weight(), QUANTIZERS.get(name)(other).weight())


@every_format
@every_dtype
def test_evaluating_before_training_changes_neither_weight_nor_gradient(name, dtype):
    evaluated, fresh = (make(name, (64, 128), dtype)[0] for _ in range(2))
    evaluated.eval()
    with torch.no_grad():
        evaluated(inputs(evaluated, dtype))
        evaluated(inputs(evaluated, dtype)[:1, :1])
    evaluated.train()
    assert torch.equal(evaluated.weight(), fresh.weight())
    x, y = inputs(evaluated, dtype), inputs(fresh, dtype)
    evaluated(x).square().sum().backward()
    fresh(y).square().sum().backward()
    assert torch.equal(x.grad, y.grad)


@every_format
def test_a_copy_stands_alone(name):
    layer, _, _ = make(name)
    twin = copy.deepcopy(layer)
    before = layer.weight().clone()
    assert torch.equal(twin.weight(), before)
    twin.write(torch.zeros_like(before))
    assert torch.equal(layer.weight(), before)
    assert not twin.weight().any()


@every_format
@every_dtype
def test_the_state_dict_holds_the_whole_storage(name, dtype):
    layer, _, _ = make(name, dtype=dtype)
    other, _, _ = make(name, dtype=dtype, seed=3)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.weight(), layer.weight())
    assert all(tensor.is_contiguous() for tensor in layer.state_dict().values())


@every_format
def test_every_stored_tensor_moves_with_the_module(name):
    layer, _, _ = make(name)
    moved = layer.to("meta")
    assert {buffer.device.type for buffer in moved.buffers()} == {"meta"}


@every_format
def test_a_cast_changes_the_compute_dtype_and_not_what_is_stored(name):
    layer, _, _ = make(name, dtype=torch.float32)
    before = layer.weight()
    layer.to(torch.bfloat16)
    assert layer.weight().dtype == torch.bfloat16
    assert torch.equal(layer.weight(), before.bfloat16())
    assert layer(inputs(layer, torch.bfloat16)).dtype == torch.bfloat16


@every_format
def test_stored_bytes_counts_what_is_stored(name):
    layer, weight, _ = make(name, (256, 512), torch.bfloat16)
    stored = sum(t.nbytes for key, t in layer.state_dict().items() if key != "bias")
    assert layer.stored_bytes == stored
    assert layer.stored_bytes <= weight.nbytes


@every_format
def test_a_weight_of_zeros_stays_zero(name):
    layer = QUANTIZERS.get(name)(torch.zeros(6, 70))
    assert torch.equal(layer.weight(), torch.zeros(6, 70))


@every_format
def test_one_row_of_zeros_does_not_spoil_the_others(name):
    _, weight, _ = make(name, (8, 128))
    weight[3] = 0
    read = QUANTIZERS.get(name)(weight).weight()
    assert not read[3].abs().max() > 1e-4
    assert relative(read, weight) < 0.2


@every_format
def test_a_transposed_weight_is_stored_as_it_reads(name):
    _, weight, _ = make(name, (96, 48))
    strided = QUANTIZERS.get(name)(weight.mT).weight()
    assert torch.equal(strided, QUANTIZERS.get(name)(weight.mT.contiguous()).weight())


@every_format
def test_the_defaults_of_the_recipe_are_the_defaults_of_the_class(name):
    _, weight, _ = make(name)
    configured = QUANTIZERS.get(name)(weight, None, QUANTIZERS.declared(name).config(method=name))
    assert torch.equal(configured.weight(), QUANTIZERS.get(name)(weight).weight())
