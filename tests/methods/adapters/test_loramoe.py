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
from lrft.methods.quant.none import Dense
from lrft.model.builder import SiteBuilder
from lrft.recipe.load import load_recipe
from lrft.registry.axes import QUANTIZERS
from lrft.registry.errors import RecipeError

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
    got = squared_variation(weights.sum(1) * importance(2.0 * types - 1, delta, 6))
    torch.testing.assert_close(got, authors_constraint(weights, types, 6, delta, 1.0))


def test_types_and_halves_swapped_together_give_the_same_constraint():
    torch.manual_seed(0)
    Q, types = torch.rand(4, 6), torch.tensor([1.0, -1.0, 0.0, 1.0])
    swapped = torch.cat([Q[:, 3:], Q[:, :3]], dim=1)
    one = squared_variation(Q * importance(types, 0.3, 6))
    torch.testing.assert_close(squared_variation(swapped * importance(-types, 0.3, 6)), one)


def featured(documents, features, length):
    ids, none = torch.zeros(1, length, dtype=torch.long), torch.zeros(0, dtype=torch.long)
    return Batch(ids, ids, tuple(documents), none, none, features=tuple(features))


def test_documents_favour_the_experts_of_their_own_type_packed_as_alone():
    adapter, base = make(experts=4, delta=0.4, types={"kind": ["facts", "other"]})
    x = torch.randn(1, 9, 24)
    documents = [(0, 0, 3), (0, 3, 5), (0, 5, 8)]
    with computing(featured(documents, [("kind=other",), ("kind=facts",), ()], 9)):
        adapter(x, base)
        got = adapter.penalty()
    g = torch.softmax(x[0] @ adapter.router.mT, -1)
    Q = torch.stack([g[start:end].sum(0) for _, start, end in documents])
    less, more = torch.full((2,), 0.6), torch.full((2,), 1.4)
    Z = Q * torch.stack([torch.cat([less, more]), torch.cat([more, less]), torch.ones(4)])
    torch.testing.assert_close(got, 0.1 * Z.var() / Z.mean() ** 2)


def test_two_types_end_in_different_halves_of_the_experts():
    """Z is constant where the half with I = 1 + delta has the share (1 - delta) / 2 of a document."""
    adapter, base = make(experts=4, delta=0.5, beta=1.0, types={"kind": ["facts", "other"]})
    torch.nn.init.zeros_(adapter.router)
    x = torch.cat([torch.randn(1, 4, 24) + 1, torch.randn(1, 4, 24) - 1], dim=1)
    rows = featured([(0, 0, 4), (0, 4, 8)], [("kind=facts",), ("kind=other",)], 8)
    optimizer = torch.optim.SGD([adapter.router], lr=0.5)
    for _ in range(40):
        optimizer.zero_grad()
        with computing(rows):
            adapter(x, base)
            loss = adapter.penalty()
        loss.backward()
        optimizer.step()
    assert loss < 0.02
    first = torch.softmax(x[0] @ adapter.router.mT, -1).view(2, 4, 4)[..., :2].sum(-1).mean(1)
    torch.testing.assert_close(first, torch.tensor([0.25, 0.75]), atol=0.05, rtol=0)


def test_evaluation_needs_no_types_and_a_layer_of_some_tokens_is_refused():
    adapter, base = make(experts=4, delta=0.4, types={"kind": ["facts", "other"]})
    assert LoRAMoE.row_features(adapter.config) == ("kind=facts", "kind=other")
    assert SiteBuilder(Dense, LoRAMoE, adapter.config).features == ()
    assert "--features" not in LoRAMoE.why_not_merged(adapter.config, SITE)
    adapter.eval()(torch.randn(2, 3, 24), base)
    adapter.train()(torch.randn(2, 3, 24), base)
    with pytest.raises(RecipeError, match=r"layers\.0\.mlp\.up_proj is given some tokens"):
        adapter.penalty()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"delta": 0.1}, r"write types: \{COLUMN: \[ONE, OTHER\]\}, or delta: 0"),
        ({"types": {"kind": ["a", "b"]}}, "write both above 0, or leave types out"),
        ({"types": {"kind": ["a", "b"]}, "delta": 0.1, "beta": 0.0}, "write both above 0"),
        ({"types": {"kind": ["a", "a"]}, "delta": 0.1}, "name one value twice"),
        ({"types": {"kind": ["a", "b", "c"]}, "delta": 0.1}, "at most 2 items"),
        ({"types": {"kind": ["a", "b"]}, "delta": 0.1, "experts": 3}, "two task types; 3 is odd"),
    ],
)
def test_types_that_say_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_the_column_of_types_is_the_one_that_is_read(tmp_path):
    recipe = tmp_path / "r.yaml"
    adapter = "{method: loramoe, delta: 0.1, types: {kind: [a, b]}}"
    recipe.write_text(f"{{model: {{name: x/y}}, adapter: {adapter}, data: {{train: x/y}}}}", encoding="utf-8")
    load_recipe(recipe, ["data.features=[kind]"])
    for read in ("[task]", "[]", "[kind, task]"):
        with pytest.raises(RecipeError, match=r"data\.features: adapter\.types is of kind; write \[kind\]"):
            load_recipe(recipe, [f"data.features={read}"])
    with pytest.raises(RecipeError, match=r"data\.features: adapter\.types is left out; write \[\]"):
        load_recipe(recipe, ["adapter.types=null", "adapter.delta=0", "data.features=[kind]"])


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
