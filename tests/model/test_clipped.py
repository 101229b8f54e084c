"""Projections whose outputs the family's code clips in place."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from lrft.build.adapt import adapt
from lrft.core.adapted import adapted
from lrft.model.probe import batch_of
from lrft.recipe.load import load_recipe


@pytest.mark.parametrize("checkpointing", ["false", "true"])
@pytest.mark.parametrize("method", ["dora", "lora"])
def test_an_adapter_that_keeps_its_outputs_trains_where_they_are_clipped(
    tiny, method, checkpointing, tmp_path
):
    """DoRA keeps y for the gradient of its gain; the slope along a gradient is its norm.

    Its norms are constants in the backward pass, so of DoRA only the gradient of the magnitudes is a slope.
    """
    folder = shutil.copytree(tiny("olmoe"), tmp_path / "clipped")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"clip_qkv": 0.3}))
    given = [f"model.name={folder}", "train.device=cpu", "model.dtype=float32"]
    given += [
        f"adapter={{method: {method}, rank: 4, dropout: 0}}",
        f"model.activation_checkpointing={checkpointing}",
    ]
    model = adapt(
        load_recipe("recipes/smoke/lora.yaml", [*given, "init.method=default"]).recipe
    ).model.train()
    torch.manual_seed(0)
    parameters = [p for _, site in adapted(model.hf) for p in site.adapter.parameters()]
    for parameter in parameters:
        parameter.data += 0.1 * torch.randn_like(parameter)
    parameters = [p for p in parameters if method != "dora" or p.dim() == 1]
    batch = batch_of([[[5, 6, 7, 8, 9, 10], [11, 12, 13]]])
    seed = torch.randn_like(model.hidden(batch).detach())
    (model.hidden(batch) * seed).sum().backward()
    found = [p.grad for p in parameters if p.grad is not None]
    assert found
    square, step = sum(float(g.square().sum()) for g in found), 2e-4
    losses = []
    for sign in (1, -1):
        with torch.no_grad():
            for p in parameters:
                p.add_(0 if p.grad is None else p.grad, alpha=sign * step / square**0.5)
            losses.append(float((model.hidden(batch).double() * seed).sum()))
            for p in parameters:
                p.sub_(0 if p.grad is None else p.grad, alpha=sign * step / square**0.5)
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(square**0.5, rel=0.05)
