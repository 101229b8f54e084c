"""LoRAMoE's own statements, the authors' loop and constraint among them."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lrft.core.batch import Batch
from lrft.core.context import computing
from lrft.core.params import Site
from lrft.methods.adapters._routing import squared_variation
from lrft.methods.adapters.lora import LoRA
from lrft.methods.adapters.loramoe import LoRAMoE, importance
from lrft.registry.axes import QUANTIZERS

SITE = Site("layers.0.mlp.up_proj", 24, 40)


def make(**settings):
    torch.manual_seed(0)
    adapter = LoRAMoE(LoRAMoE.Config(method="loramoe", **{"dropout": 0.0, **settings}), SITE)
    torch.nn.init.normal_(adapter.B, std=0.3)
    torch.nn.init.normal_(adapter.router)
    return adapter, QUANTIZERS.get("none")(torch.randn(40, 24))


def authors(adapter, base, x):
    """The forward pass of the authors' linear layer, expert by expert: output and routing weights."""
    r, result = adapter.config.rank, base(x)
    weights = torch.softmax(F.linear(x, adapter.router), dim=-1)
    for i in range(adapter.config.experts):
        A, B = adapter.A[i * r : (i + 1) * r], adapter.B[:, i * r : (i + 1) * r]
        result = result + weights[:, :, i].unsqueeze(-1) * F.linear(F.linear(x, A), B) * adapter.scaling
    return result, weights


def authors_constraint(route_weight, task_types, experts, alpha, weight):
    task_types = task_types.view(-1, 1)
    first = (task_types == 1).repeat(1, experts // 2)
    second = (task_types == 0).repeat(1, experts // 2)
    signs = torch.where(torch.concat((first, second), dim=-1), 1.0 + alpha, 1.0 - alpha)
    x = (route_weight.sum(dim=1) * signs).flatten()
    return x.float().var() / (x.float().mean() ** 2 + 1e-10) * weight


def test_the_map_and_the_plain_constraint_are_the_authors():
    adapter, base = make(experts=6)
    x = torch.randn(3, 5, 24)
    expected, weights = authors(adapter, base, x)
    torch.testing.assert_close(adapter(x, base), expected)
    types = torch.tensor([1, 0, 0])
    torch.testing.assert_close(adapter.penalty(), authors_constraint(weights, types, 6, 0.0, 0.1))


@pytest.mark.parametrize("delta", [0.0, 0.1, 0.6])
def test_the_localized_constraint_is_the_authors(delta):
    torch.manual_seed(0)
    weights, types = torch.softmax(torch.randn(4, 7, 6), -1), torch.tensor([1, 0, 0, 1])
    got = squared_variation(weights.sum(1) * importance(types, delta, 6))
    torch.testing.assert_close(got, authors_constraint(weights, types, 6, delta, 1.0))


def test_types_and_halves_swapped_together_give_the_same_constraint():
    torch.manual_seed(0)
    Q, types = torch.rand(4, 6), torch.tensor([1, 0, 0, 1])
    swapped = torch.cat([Q[:, 3:], Q[:, :3]], dim=1)
    one = squared_variation(Q * importance(types, 0.3, 6))
    torch.testing.assert_close(squared_variation(swapped * importance(1 - types, 0.3, 6)), one)


def test_types_are_refused_while_no_data_carries_them():
    with pytest.raises(ValueError, match=r"task types, which no data format carries yet; write delta: 0"):
        make(delta=0.1)


def test_one_expert_is_lora():
    adapter, base = make(experts=1, rank=4, alpha=32.0)
    plain = LoRA(LoRA.Config(method="lora", rank=4, alpha=32.0), SITE)
    plain.load_state_dict({"A": adapter.A, "B": adapter.B})
    x = torch.randn(3, 24)
    torch.testing.assert_close(adapter(x, base), plain(x, base))
    adapter(torch.randn(1, 3, 24), base)
    assert adapter.penalty() == 0


def test_the_order_of_the_experts_does_not_matter():
    adapter, base = make(experts=4)
    x = torch.randn(2, 3, 24)
    before, order = adapter(x, base), torch.tensor([2, 0, 3, 1])
    rows = (order[:, None] * 4 + torch.arange(4)).flatten()
    with torch.no_grad():
        adapter.A.copy_(adapter.A[rows])
        adapter.B.copy_(adapter.B[:, rows])
        adapter.router.copy_(adapter.router[order])
    torch.testing.assert_close(adapter(x, base), before)


def test_padding_and_packing_do_not_change_the_constraint():
    adapter, base = make()
    documents = [torch.randn(1, n, 24) for n in (3, 2, 4)]
    Q = torch.cat([torch.softmax(x @ adapter.router.mT, -1).sum(1) for x in documents])
    packed = torch.cat([*documents, torch.randn(1, 3, 24)], dim=1)
    ids, none = torch.zeros(1, 12, dtype=torch.long), torch.zeros(0, dtype=torch.long)
    with computing(Batch(ids, ids, ((0, 0, 3), (0, 3, 5), (0, 5, 9)), none, none)):
        adapter(packed, base)
        torch.testing.assert_close(adapter.penalty(), 0.1 * squared_variation(Q))


def test_evaluation_leaves_nothing_and_no_weight_means_no_penalty():
    adapter, base = make()
    adapter.eval()(torch.randn(2, 3, 24), base)
    assert adapter.penalty() is None
    adapter, base = make(beta=0.0)
    adapter(torch.randn(2, 3, 24), base)
    assert adapter.penalty() is None


def test_the_mlps_of_llama_7b_train_what_the_formula_says():
    config = LoRAMoE.Config(method="loramoe")
    shapes = [(4096, 11008), (4096, 11008), (11008, 4096)]
    counted = 32 * sum(LoRAMoE.count(config, Site("s", i, o)) for i, o in shapes)
    assert counted == 32 * 8 * (3 * 4 * (4096 + 11008) + 4096 + 4096 + 11008) == 51_314_688
