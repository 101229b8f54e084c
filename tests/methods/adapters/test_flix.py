"""FLix's own statements: sums of LoRAs by the features of a row, packed or not, dropped alike at every site."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from lrft.core.adapted import Adapted
from lrft.core.batch import Batch
from lrft.core.context import computing
from lrft.core.features import passing
from lrft.core.params import Site
from lrft.methods.adapters.flix import FLix
from lrft.methods.adapters.lora import LoRA
from lrft.methods.quant.none import Dense
from lrft.recipe.load import load_recipe
from lrft.registry.errors import NotMergeable, RecipeError

FEATURES = {"language": ["sw", "yo"], "task": ["qa", "ner", "pos"]}
NAMES = ("language=sw", "language=yo", "task=qa", "task=ner", "task=pos")
WIDTH, OUT = 16, 12


def make(name="a", **settings):
    torch.manual_seed(0)
    settings = {"features": FEATURES, "rank": 3, "ranks": {"language": 2}, "feature_dropout": 0.0, **settings}
    adapter = FLix(FLix.Config(method="flix", **settings), Site(name, WIDTH, OUT))
    torch.nn.init.normal_(adapter.B)
    weight = torch.randn(OUT, WIDTH) / WIDTH**0.5
    return Adapted(Dense(weight), adapter), weight


def change(adapter, features):
    """The sum of B_f A_f, feature by feature."""
    A, B = adapter.A.split([2, 2, 3, 3, 3]), adapter.B.split([2, 2, 3, 3, 3], dim=1)
    found = torch.zeros(OUT, WIDTH)
    for name in features:
        found = found + B[NAMES.index(name)] @ A[NAMES.index(name)]
    return found


def batch(documents, features, rows, length):
    ids, none = torch.zeros(rows, length, dtype=torch.long), torch.zeros(0, dtype=torch.long)
    return Batch(ids, ids, tuple(documents), none, none, features=tuple(features))


SETS = [("language=sw", "task=ner"), ("task=pos",), (), ("language=yo", "task=ner")]


def test_every_row_gets_the_sum_of_its_features_changes():
    site, weight = make()
    x = torch.randn(4, 5, WIDTH)
    with passing(SETS):
        y = site(x)
    for row, features in enumerate(SETS):
        expected = F.linear(x[row], weight + change(site.adapter, features))
        torch.testing.assert_close(y[row], expected, atol=1e-5, rtol=1e-5)


def test_documents_of_a_packed_row_keep_their_own_features_and_padding_has_none():
    site, weight = make()
    documents = [(0, 0, 2), (0, 2, 5), (1, 0, 1), (1, 1, 4)]
    x = torch.randn(2, 6, WIDTH)
    rows = batch(documents, SETS, 2, 6)
    with computing(rows):
        packed = site(x)
        flat = site(x.view(1, 12, WIDTH)).view(2, 6, OUT)  # as kernels that take all rows as one get them
    torch.testing.assert_close(packed, flat)
    for (row, start, end), features in zip(documents, SETS, strict=True):
        expected = F.linear(x[row, start:end], weight + change(site.adapter, features))
        torch.testing.assert_close(packed[row, start:end], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(packed[0, 5:], F.linear(x[0, 5:], weight))


def test_one_feature_that_all_rows_have_is_lora():
    site, _ = make(features={"task": ["qa"]}, ranks={}, alpha=6.0)
    lora = LoRA(LoRA.Config(method="lora", rank=3, alpha=6.0), site.adapter.site)
    lora.load_state_dict(site.adapter.state_dict())
    x = torch.randn(2, 5, WIDTH)
    with passing([("task=qa",)] * 2):
        torch.testing.assert_close(site(x), lora(x, site.base), atol=1e-5, rtol=1e-5)


def test_a_row_of_which_nothing_is_known_is_the_bases():
    site, weight = make()
    x = torch.randn(2, 5, WIDTH)
    torch.testing.assert_close(site(x), F.linear(x, weight))
    with passing([("language=en",), ("language=sw",)]):
        y = site(x)
    torch.testing.assert_close(y[0], F.linear(x[0], weight))
    torch.testing.assert_close(y[1], F.linear(x[1], weight + change(site.adapter, ["language=sw"])))


def test_features_that_no_row_has_get_a_gradient_of_0():
    site, _ = make()
    with passing([("task=qa",)]):
        site(torch.randn(1, 5, WIDTH)).square().sum().backward()
    assert site.adapter.A.grad[4:7].abs().min() > 0
    assert not site.adapter.A.grad[:4].any() and not site.adapter.A.grad[7:].any()
    site.adapter.zero_grad()
    with passing([()]):
        site(torch.randn(1, 5, WIDTH)).square().sum().backward()
    assert not site.adapter.A.grad.any() and not site.adapter.B.grad.any()


def test_a_row_loses_a_feature_at_all_sites_alike_and_only_where_it_is_trained_on():
    documents = [(row, 0, 1) for row in range(2000)]
    rows = batch(documents, [("language=sw", "task=qa")] * 2000, 2000, 1)
    x = torch.ones(2000, 1, WIDTH)
    sites = [make(name, feature_dropout=0.25)[0] for name in ("a", "b")]
    with computing(rows, seed=5):
        first, second = (site(x) for site in sites)
        assert torch.equal(first, second)
        parts = [(), ("language=sw",), ("task=qa",), ("language=sw", "task=qa")]
        seen = {
            part: (first - F.linear(x, sites[0].base.weight() + change(sites[0].adapter, part))).abs().amax(2)
            < 1e-4
            for part in parts
        }
    shares = [float(seen[part].float().mean()) for part in parts]
    assert shares == pytest.approx([1 / 16, 3 / 16, 3 / 16, 9 / 16], abs=0.04)
    with computing(rows, seed=6):
        assert not torch.equal(sites[0](x), first)
    whole = F.linear(x, sites[0].base.weight() + change(sites[0].adapter, parts[-1]))
    with computing(rows):
        torch.testing.assert_close(sites[0](x), whole)
    with computing(rows, seed=5):
        torch.testing.assert_close(sites[0].eval()(x), whole)


def test_of_a_batch_only_the_features_that_are_there_are_kept():
    site, _ = make(features={"task": [str(k) for k in range(50)]}, rank=4, ranks={})
    x, kept = torch.randn(1, 500, WIDTH), {}

    def remember(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with passing([("task=7",)]), torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        site(x)
    factors = 2 * 4 * 4 * (WIDTH + OUT)
    assert (
        sum(kept.values()) <= 500 * (4 * WIDTH + 2 * 4 * 4 + 4) + factors
    )  # x, two products of rank 4, gates


def test_counts_are_the_sum_over_features():
    config = FLix.Config(method="flix", features=FEATURES, rank=4, ranks={"language": 2})
    assert FLix.count(config, Site("a", 4096, 1024)) == (2 * 2 + 3 * 4) * (4096 + 1024)


def test_there_is_no_one_weight_to_merge_into():
    site, _ = make()
    with pytest.raises(NotMergeable, match="site a"):
        site.merged_weight()


def test_a_layer_that_sees_some_tokens_alone_is_refused():
    site, _ = make()
    rows = batch([(0, 0, 6)], [("task=qa",)], 1, 6)
    with computing(rows), pytest.raises(RecipeError, match=r"adapter\.exclude: a is given some tokens"):
        site(torch.randn(5, WIDTH))
    with passing([("task=qa",)] * 2), pytest.raises(RecipeError, match=r"a is given some tokens"):
        site(torch.randn(5, WIDTH))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"features": {"task": ["qa", "qa"]}}, "features of task name qa twice"),
        ({"ranks": {"tasks": 4}}, "ranks name tasks, and features have language, task"),
        ({"features": {}}, "features"),
    ],
)
def test_settings_that_say_nothing_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        make(**settings)


def test_columns_are_those_of_the_data(tmp_path):
    recipe = tmp_path / "r.yaml"
    text = "{model: {name: x/y}, adapter: {method: flix, features: {task: [a, b]}}, data: {train: x/y}}"
    recipe.write_text(text, encoding="utf-8")
    load_recipe(recipe, ["data.features=[task]"])
    with pytest.raises(RecipeError, match=r"data\.features: adapter.features are of task; write \[task\]"):
        load_recipe(recipe, ["data.features=[language]"])
    with pytest.raises(RecipeError, match=r"data\.features: adapter.features are of task; write \[task\]"):
        load_recipe(recipe, [])
    with pytest.raises(RecipeError, match=r"data\.features: adapter lora goes by no feature .* flix"):
        load_recipe(recipe, ["adapter=lora", "data.features=[task]"])
