"""Integers in groups: the layouts of GPTQ and AWQ, packed here number by number, and what rounding to nearest is."""

from __future__ import annotations

import pytest
import torch

from lrft.methods.quant.int_groups import IntGroups
from lrft.registry.errors import UsageError
from tests.each import each

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def known(out=16, width=32, size=8, bits=4, seed=0):
    """Integers n (out, in), zero points and scales (out, groups)."""
    generator = torch.Generator().manual_seed(seed)
    n = torch.randint(0, 2**bits, (out, width), generator=generator)
    z = torch.randint(0, 2**bits, (out, width // size), generator=generator)
    z[0, 0] = 0  # which GPTQ stores as -1
    s = (torch.rand(out, width // size, generator=generator) + 0.1).half()
    return n, z, s


def words(rows, bits):
    """Rows of integers, each row's into words of 32 bits, the first in the lowest bits; Python's own integers."""
    found = []
    for row in rows.tolist():
        each_word = [row[i : i + 32 // bits] for i in range(0, len(row), 32 // bits)]
        packed = [sum(value << (bits * place) for place, value in enumerate(word)) for word in each_word]
        found.append([value - 2**32 if value >= 2**31 else value for value in packed])
    return torch.tensor(found, dtype=torch.int32)


def as_gptq(n, z, s, bits=4, group=None):
    """What AutoGPTQ writes of a layer: words along the inputs, zero points less 1."""
    width = n.shape[1]
    tensors = {
        "qweight": words(n, bits).mT.contiguous(),
        "qzeros": words(((z - 1) % 2**bits).mT, bits),
        "scales": s.mT.contiguous(),
    }
    of_input = torch.arange(width) // (width // s.shape[1]) if group is None else group
    return {**tensors, "g_idx": of_input.int()}


def as_awq(n, z, s):
    """What AutoAWQ writes: words along the outputs, whose eight columns stand in an order of their own."""
    order = torch.tensor(ORDER)
    turned = [part.mT.unflatten(1, (-1, 8))[..., order].flatten(1) for part in (n, z)]
    return {"qweight": words(turned[0], 4), "qzeros": words(turned[1], 4), "scales": s.mT.contiguous()}


def decoded(n, z, s, group):
    return s.float()[:, group] * (n - z[:, group])


@each("bits", [2, 4, 8])
def test_a_layer_of_gptq_is_read_integer_by_integer(bits):
    n, z, s = known(bits=bits)
    layer = IntGroups.unpack(as_gptq(n, z, s, bits), None, torch.float32)
    assert torch.equal(layer.weight(), decoded(n, z, s, torch.arange(32) // 8))
    assert layer.group is None and (layer.config.bits, layer.config.group_size) == (bits, 8)
    assert IntGroups.dense_shape({k: tuple(t.shape) for k, t in as_gptq(n, z, s, bits).items()}) == (16, 32)


def test_the_groups_that_desc_act_lists_are_followed():
    n, z, s = known()
    group = torch.arange(32)[torch.randperm(32, generator=torch.Generator().manual_seed(1))] // 8
    layer = IntGroups.unpack(as_gptq(n, z, s, group=group), None, torch.float32)
    assert torch.equal(layer.weight(), decoded(n, z, s, group))
    layer.to(torch.bfloat16)
    assert torch.equal(layer.weight(), decoded(n, z, s, group).bfloat16())


def test_a_layer_of_awq_is_read_integer_by_integer():
    n, z, s = known()
    tensors = as_awq(n, z, s)
    layer = IntGroups.unpack(tensors, None, torch.float32)
    assert torch.equal(layer.weight(), decoded(n, z, s, torch.arange(32) // 8))
    assert IntGroups.dense_shape({k: tuple(t.shape) for k, t in tensors.items()}) == (16, 32)


def test_one_group_is_a_whole_row():
    n, z, s = known(size=32)
    layer = IntGroups.unpack(as_gptq(n, z, s), None, torch.float32)
    assert layer.config.group_size is None
    assert torch.equal(layer.weight(), decoded(n, z, s, torch.zeros(32, dtype=torch.long)))


def test_a_dense_weight_is_rounded_to_nearest_with_its_largest_exact():
    torch.manual_seed(0)
    weight = torch.randn(6, 20)
    layer = IntGroups(weight, None, IntGroups.Config(method="int_groups", group_size=8))
    read = layer.weight()
    for row, out in zip(weight, read, strict=True):
        for part, found in zip(row.split(8), out.split(8), strict=True):  # the last group is short
            step = part.abs().max() / 7
            torch.testing.assert_close(found, (part / step).round() * step)
    assert (read - weight).abs().max() <= weight.abs().max() / 14 + 1e-6


@each(("bits", "size"), [(4, 128), (2, 64), (3, 64), (8, 32)])
def test_the_bits_are_those_that_the_docstring_says(bits, size):
    config = IntGroups.Config(method="int_groups", bits=bits, group_size=size)
    layer = IntGroups(torch.randn(64, 256), None, config)
    assert layer.stored_bytes * 8 / (64 * 256) == IntGroups.bits(config) == bits + 40 / size


SAID = {"quant_method": "gptq", "bits": 4, "group_size": 128}


def test_what_configurations_say():
    assert IntGroups.held_by({"quant_method": "fp8"}) is None
    assert IntGroups.held_by(SAID) == {"bits": 4, "group_size": 128}
    assert IntGroups.held_by({**SAID, "group_size": -1}) == {"bits": 4, "group_size": None}
    awq = {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm", "zero_point": True}
    assert IntGroups.held_by(awq) == {"bits": 4, "group_size": 64}
    refused = {
        "its layout gptq_v2": {**SAID, "checkpoint_format": "gptq_v2"},
        "its layout gemv": {**awq, "version": "gemv"},
        "its 3 bits": {**SAID, "bits": 3},
        "no zero points": {**awq, "zero_point": False},
        "its group_size": {"quant_method": "gptq", "bits": 4},
    }
    for words_of_it, said in refused.items():
        with pytest.raises(UsageError, match=words_of_it):
            IntGroups.held_by(said)
