"""Every storage format can be cut into parts over processes: the weight is the same bits, the bytes are shared out."""

import pytest
import torch

from lrft.core import sharded
from lrft.core.changed import Changed
from lrft.core.frozen import Absent
from lrft.core.sharded import Sharded, shard
from lrft.core.team import Order, Team
from lrft.registry.axes import QUANTIZERS

every_format = pytest.mark.parametrize("name", QUANTIZERS.names())


def made(name, shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator).mul(0.02).to(dtype)
    return QUANTIZERS.get(name)(weight, torch.randn(shape[0], generator=generator).to(dtype))


@pytest.fixture
def together(monkeypatch):
    """`together(make, size)`: a map as each of so many processes keeps it; a gather sees the parts of all."""

    def make_all(make, size):
        layers = [Sharded(make(), Team(rank, size, order=Order()), 1) for rank in range(size)]

        def gather(whole, part):
            assert whole.numel() == size * part.numel()
            torch.cat([layer.part for layer in layers], out=whole)

        monkeypatch.setattr(sharded, "_all_gather", gather)
        return layers

    return make_all


@every_format
@pytest.mark.parametrize("shape", [(64, 128), (7, 13), (5, 66), (1, 3)], ids=str)
@pytest.mark.parametrize("size", [2, 3, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_gathered_weight_is_the_whole_one_bit_for_bit(together, name, shape, size, dtype):
    whole = made(name, shape, dtype)
    layers = together(lambda: made(name, shape, dtype), size)
    x = torch.randn(3, shape[1], generator=torch.Generator().manual_seed(1)).to(dtype)
    for layer in layers:
        assert torch.equal(layer.weight(), whole.weight())
        assert torch.equal(layer(x), whole(x))
        assert layer.weight().dtype == dtype
        assert layer.compute_dtype == whole.compute_dtype


@every_format
@pytest.mark.parametrize("size", [2, 3])
def test_a_process_keeps_its_share_of_the_bytes_before_and_after_a_use(together, name, size):
    whole = made(name, (64, 128))
    tensors = [t for n, t in whole.named_buffers() if n != "bias"]
    for layer in together(lambda: made(name, (64, 128)), size):
        for _ in range(2):
            kept = [b.untyped_storage().nbytes() for n, b in layer.named_buffers() if n != "bias"]
            assert sum(kept) == layer.stored_bytes
            assert (
                whole.stored_bytes / size <= sum(kept) < whole.stored_bytes / size + 16 * (len(tensors) + 1)
            )
            layer.weight()


@every_format
def test_gradients_and_writing_are_those_of_the_whole_map(together, name):
    whole = made(name, (24, 32))
    layers = together(lambda: made(name, (24, 32)), 2)
    new = torch.randn(24, 32, generator=torch.Generator().manual_seed(4))
    for layer in (whole, *layers):
        layer.write(new)
    for layer in layers:
        ours, theirs = (torch.ones(2, 32, requires_grad=True) for _ in range(2))
        layer(ours).square().sum().backward()
        whole(theirs).square().sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad)
        assert layer.edited


def test_the_order_of_uses_is_noted(together):
    (layer, other) = together(lambda: made("none", (4, 4)), 2)
    assert layer.team.order.trace == other.team.order.trace
    layer.weight()
    assert layer.team.order.trace != other.team.order.trace
    other.weight()
    assert layer.team.order.trace == other.team.order.trace


def test_a_bias_stays_whole_and_may_train(together):
    bias = torch.nn.Parameter(torch.ones(4))

    def make():
        layer = QUANTIZERS.get("none")(torch.eye(4))
        layer.train_bias(bias)
        return layer

    for layer in together(make, 2):
        assert dict(layer.named_parameters()) == {"bias": bias}
        layer(torch.ones(2, 4)).sum().backward()
    assert torch.equal(bias.grad, torch.full((4,), 4.0))


def test_what_stands_around_a_base_stays_and_what_holds_nothing_is_left():
    team = Team(0, 2, order=Order())
    absent = Absent(torch.ones(3, 3))
    assert shard(absent, team, 1) is absent
    changed = Changed(shard(made("none", (4, 4)), team, 1))
    assert changed.original is changed.inner
    assert isinstance(changed.original, Sharded)
