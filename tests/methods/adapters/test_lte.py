"""LTE's own statements, the authors' loop among them: slices, increments, merges into W."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from lrft.core.adapted import Adapted
from lrft.core.batch import Batch
from lrft.core.context import computing
from lrft.core.params import Site
from lrft.methods.adapters.lora import LoRA
from lrft.methods.adapters.lte import LTE
from lrft.methods.quant.none import Dense
from lrft.recipe.load import load_recipe
from lrft.registry.errors import RecipeError

ROWS, LENGTH, WIDTH, OUT = 4, 3, 16, 12


def make(heads=2, rank=2, **settings):
    torch.manual_seed(0)
    config = LTE.Config(method="lte", heads=heads, rank=rank, alpha=4.0, **settings)
    weight = torch.randn(OUT, WIDTH) / WIDTH**0.5
    return Adapted(Dense(weight), LTE(config, Site("a", WIDTH, OUT))), weight


def batch(documents, rows=ROWS, length=LENGTH):
    ids, none = torch.zeros(rows, length, dtype=torch.long), torch.zeros(0, dtype=torch.long)
    return Batch(ids, ids, tuple(documents), none, none)


UNPACKED = [(row, 0, LENGTH) for row in range(ROWS)]


class Authors:
    """Shared W, a head a slice of the rows, increments since the last merge averaged into W, heads not reset."""

    def __init__(self, site, weight):
        self.weight, self.scale = weight.clone(), site.adapter.scaling
        self.heads = [
            [part.detach().clone().requires_grad_() for part in pair]
            for pair in site.adapter.by_head(site.adapter.A, site.adapter.B)
        ]
        self.before = [torch.zeros(OUT, WIDTH) for _ in self.heads]

    def __call__(self, x):
        parts = []
        for part, (A, B), before in zip(x.chunk(len(self.heads)), self.heads, self.before, strict=True):
            parts.append(F.linear(part, self.weight + self.scale * B @ A - before))
        return torch.cat(parts)

    @torch.no_grad()
    def merge(self):
        now = [self.scale * B @ A for A, B in self.heads]
        self.weight += sum(a - b for a, b in zip(now, self.before, strict=True)) / len(now)
        self.before = now


def test_four_steps_with_two_merges_are_the_authors():
    site, weight = make(every=2)
    theirs, timed = Authors(site, weight), LTE.timed(site.adapter.config)
    run = SimpleNamespace(step=0, adapted=lambda: [("a", site)])
    optimizers = [
        torch.optim.SGD(parameters, lr=0.5)
        for parameters in (site.adapter.parameters(), [p for pair in theirs.heads for p in pair])
    ]
    for run.step in (1, 2, 3, 4):
        x, goal = torch.randn(ROWS, LENGTH, WIDTH), torch.randn(ROWS, LENGTH, OUT)
        with computing(batch(UNPACKED)):
            outputs = site(x), theirs(x)
        torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)
        for optimizer, y in zip(optimizers, outputs, strict=True):
            optimizer.zero_grad()
            (y - goal).square().mean().backward()
            optimizer.step()
        timed.after_step(run)
        if run.step % 2 == 0:
            theirs.merge()
            torch.testing.assert_close(site.merged_weight(), theirs.weight, atol=1e-5, rtol=1e-5)
    heads = [B @ A for A, B in theirs.heads]
    assert not torch.allclose(heads[0], heads[1], atol=1e-2), "both learnt the same, so nothing was shown"


def test_a_head_learns_from_its_own_slice_alone():
    site, _ = make()
    torch.nn.init.normal_(site.adapter.B)
    with computing(batch(UNPACKED)):
        y = site(torch.randn(ROWS, LENGTH, WIDTH))
    y[2:].square().sum().backward()
    assert not site.adapter.A.grad[:2].any() and site.adapter.A.grad[2:].abs().min() > 0


def test_a_merge_makes_all_slices_see_one_weight_and_leaves_what_is_scored():
    site, _ = make()
    torch.nn.init.normal_(site.adapter.B)
    x = torch.randn(1, LENGTH, WIDTH).expand(ROWS, -1, -1)
    scored = site.eval()(x)
    site.train()
    with computing(batch(UNPACKED)):
        assert not torch.allclose(site(x)[0], site(x)[2], atol=1e-2)
        site.adapter.meet()
        torch.testing.assert_close(site(x), scored, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(site.eval()(x), scored)


def test_one_head_is_lora_before_and_after_merges():
    site, _ = make(heads=1)
    torch.nn.init.normal_(site.adapter.B)
    lora = LoRA(LoRA.Config(method="lora", rank=2, alpha=4.0), site.adapter.site)
    x = torch.randn(ROWS, LENGTH, WIDTH)
    for _ in range(2):
        lora.load_state_dict({"A": site.adapter.A, "B": site.adapter.B})
        with computing(batch(UNPACKED)):
            torch.testing.assert_close(site(x), lora(x, site.base), atol=1e-5, rtol=1e-5)
        site.adapter.meet()
        torch.nn.init.normal_(site.adapter.A)


def test_slices_are_of_documents_wherever_they_are_packed():
    adapter = make()[0].adapter
    rows = torch.zeros(2, 6, WIDTH)
    with computing(batch([(0, 0, 2), (0, 2, 5), (1, 0, 3), (1, 3, 4)], 2, 6)):
        assert adapter.slices(rows) == [6, 6]
        assert adapter.slices(rows.view(1, 12, WIDTH)) == [6, 6]
    with computing(batch([(0, 0, 1), (0, 1, 4), (0, 4, 6)], 1, 6)):
        assert adapter.slices(torch.zeros(1, 6, WIDTH)) == [4, 2]
    with computing(batch([(0, 0, 6)], 1, 6)):
        assert adapter.slices(torch.zeros(1, 6, WIDTH)) == [6, 0]


def test_a_layer_that_sees_some_tokens_alone_is_refused():
    site, _ = make()
    with computing(batch(UNPACKED)), pytest.raises(RecipeError, match=r"adapter\.exclude: a is given some"):
        site(torch.randn(5, WIDTH))


def test_what_was_merged_survives_a_resume():
    one, two = make()[0], make()[0]
    torch.nn.init.normal_(one.adapter.B)
    one.adapter.meet()
    torch.nn.init.normal_(one.adapter.B)
    two.adapter.load_state_dict(one.adapter.state_dict())
    x = torch.randn(ROWS, LENGTH, WIDTH)
    with computing(batch(UNPACKED)):
        assert torch.equal(one(x), two(x))


def test_no_activation_is_kept_for_what_was_merged():
    site, _ = make()
    x, kept = torch.randn(ROWS, 500, WIDTH), {}

    def remember(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    tokens = ROWS * 500
    rows = batch([(row, 0, 500) for row in range(ROWS)], length=500)
    with computing(rows), torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        site(x)
    small = 4 * 4 * (WIDTH + OUT) * 4  # factors of both slices
    # x itself, and of each token the components of its own head, then and now
    assert sum(kept.values()) <= 4 * tokens * (WIDTH + 2 * 2) + small


def test_batches_without_a_slice_a_head_and_runs_without_a_merge_are_refused(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("{model: {name: x/y}, adapter: {method: lte, heads: 4}, data: x/y}", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"train\.batch_size: 4 heads share the 6 rows .*; write 8"):
        load_recipe(recipe, ["train.batch_size=6"])
    with pytest.raises(RecipeError, match=r"adapter\.every: 10 steps .*use at most 2"):
        load_recipe(recipe, ["train.max_steps=3"])
