"""Trainable tokens beside PEFT's layer, the tied head, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lrft.api.training.train import train
from lrft.core.block import AdaptedBlock
from lrft.core.params import Site
from lrft.methods.adapters.trainable_tokens import TrainableTokens
from lrft.ops.loss import Head, linear_cross_entropy
from lrft.recipe.load import load_recipe

IDS = torch.tensor([[3, 7, 7, 0, 11, 3]])


class Scaled(nn.Embedding):
    """As Gemma's: rows come out multiplied."""

    embed_scale = 4.0

    def forward(self, ids):
        return super().forward(ids) * self.embed_scale


class Shifted(nn.Embedding):
    def forward(self, ids):
        return super().forward(ids) + 1


def make(kind=nn.Embedding, ids=(7, 3)):
    torch.manual_seed(0)
    block = kind(12, 8).requires_grad_(False)
    config = TrainableTokens.Config(method="trainable_tokens", ids=list(ids))
    adapter = TrainableTokens(config, Site("e", 12, 8, kind="embedding"))
    adapter.fit(block)
    return AdaptedBlock(block, adapter), block


@pytest.mark.parametrize("kind", [nn.Embedding, Scaled])
def test_it_is_the_embedding_with_other_rows_and_so_are_the_gradients(kind):
    site, block = make(kind)
    assert torch.equal(site(IDS), block(IDS))
    with torch.no_grad():
        site.adapter.rows.normal_()
    whole = kind(12, 8)
    with torch.no_grad():
        whole.weight.copy_(site.merged_parameters()["weight"][1])
    torch.testing.assert_close(site(IDS), whole(IDS))
    seed = torch.randn(1, 6, 8)
    (site(IDS) * seed).sum().backward()
    (whole(IDS) * seed).sum().backward()
    torch.testing.assert_close(site.adapter.rows.grad, whole.weight.grad[[3, 7]])


def test_it_is_pefts_layer():
    peft = pytest.importorskip("peft")
    site, block = make()
    model = nn.ModuleDict({"embed": nn.Embedding(12, 8)})
    keys = {
        k: v for k, v in TrainableTokens.peft.keys(site.adapter.config, False).items() if k != "peft_type"
    }
    layer = peft.get_peft_model(model, peft.TrainableTokensConfig(target_modules=["embed"], **keys))
    layer = layer.base_model.model["embed"]
    with torch.no_grad():
        layer.base_layer.weight.copy_(block.weight)
        site.adapter.rows.normal_()
        layer.trainable_tokens_delta["default"].copy_(site.adapter.rows)
    torch.testing.assert_close(site(IDS), layer(IDS))
    layer.merge()
    assert torch.equal(site.merged_parameters()["weight"][1], layer.base_layer.weight)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_the_loss_of_a_tied_head_is_that_of_the_matrix_with_the_rows(scale):
    """In the one node that forms no logits: places that are no range."""
    site, block = make(ids=(9, 1, 4))
    rows, places = site.adapter.vocabulary_rows()
    with torch.no_grad():
        rows.normal_()
    head = nn.Linear(8, 12, bias=False).requires_grad_(False)
    head.weight = block.weight
    hidden, targets = torch.randn(40, 8, requires_grad=True), torch.arange(40) % 12
    loss = linear_cross_entropy(hidden, Head(head, None, scale, rows, places), targets, chunk=16)
    loss.backward()
    again = hidden.detach().clone().requires_grad_()
    whole = block.weight.index_copy(0, places, rows.detach()).requires_grad_()
    expected = F.cross_entropy(scale * again @ whole.mT, targets, reduction="sum")
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(hidden.grad, again.grad, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(rows.grad, whole.grad[places], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "ids", "said"),
    [
        (nn.Embedding, (12,), "ids has 12, and the embedding has rows 0 to 11"),
        (nn.Embedding, (3, 3), "ids has 3 twice"),
        (Shifted, (3,), "reads its rows in a way that is not known"),
    ],
)
def test_it_refuses_what_it_cannot_do(kind, ids, said):
    with pytest.raises(ValueError, match=said):
        make(kind, ids)


def test_the_published_count_on_llama_3_2_3b():
    config = TrainableTokens.Config(method="trainable_tokens", ids=[128000, 128001])
    assert TrainableTokens.count(config, Site("e", 128256, 3072, kind="embedding")) == 6_144


@pytest.mark.parametrize(
    ("tied", "file"), [(True, "adapter.safetensors"), (False, "adapter_model.safetensors")]
)
def test_peft_would_leave_out_the_bias_of_a_tied_head_so_it_is_given_no_such_form(tiny, tmp_path, tied, file):
    given = [
        f"model.name={tiny('gptj', tied=tied)}",
        "model.dtype=float32",
        "train.max_steps=2",
        "eval.tasks=[]",
    ]
    train(load_recipe("smoke/trainable_tokens", given), tmp_path / "run")
    assert (tmp_path / "run" / "adapter" / file).is_file()
