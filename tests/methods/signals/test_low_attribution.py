"""Attributions on a model: against a loop over the path by hand, and complete where the path is a straight line."""

from __future__ import annotations

import pytest
import torch

from lrft.core.batch import Batch
from lrft.core.params import Site
from lrft.core.stages import Tokens
from lrft.methods.signals.low_attribution import LowAttribution
from lrft.model.along_path import _along, measure_along_path
from lrft.model.load import load_model
from lrft.recipe.sections import ModelSection

PROMPT, LENGTH = 6, 10
SITES = [f"model.layers.{layer}.mlp.down_proj" for layer in (0, 1)]


@pytest.fixture(scope="module")
def model(tiny):
    return load_model(ModelSection(name=str(tiny()), dtype="float32"))


def document(seed=0):
    """Ten tokens, of which the answer begins after the sixth."""
    ids = torch.randint(5, 90, (1, LENGTH), generator=torch.Generator().manual_seed(seed))
    supervised = torch.arange(PROMPT - 1, LENGTH - 1)
    return Batch(ids, torch.arange(LENGTH)[None], ((0, 0, LENGTH),), supervised, ids[0, PROMPT:])


def prompt_of(ids):
    length = ids.shape[1]
    last = torch.tensor([length - 1])
    return Batch(ids, torch.arange(length)[None], ((0, 0, length),), last, torch.zeros(1).long())


def logits_after(model, ids):
    return model(prompt_of(ids))[0, -1]


def by_hand(model, site, ids, points):
    """Scores of every output: one pass for each point of the path, the output at the last token scaled."""
    layer, held = model.hf.get_submodule(site), {}
    logits = logits_after(model, ids)
    answer, share = logits.argmax(), 1.0

    def scale(module, inputs, output):
        held["y"] = output[0, -1].detach()
        held["z"] = (share * held["y"]).requires_grad_()
        return torch.cat([output[0, :-1].detach(), held["z"][None]])[None]

    handle = layer.register_forward_hook(scale)
    gradients = []
    for step in range(points):
        share = step / (points - 1)
        gradients.append(torch.autograd.grad(logits_after(model, ids)[answer], held["z"])[0])
    handle.remove()
    return held["y"] * torch.trapezoid(torch.stack(gradients), dx=1 / (points - 1), dim=0)


@pytest.mark.parametrize("site", SITES)
def test_attributions_are_those_of_a_loop_over_the_path(model, site):
    ids = document().input_ids[:, :PROMPT]
    answer = int(logits_after(model, ids).argmax())
    output, gradient = _along(model, site, prompt_of(ids), answer, 7)
    torch.testing.assert_close((output * gradient)[0], by_hand(model, site, ids, 7), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("site", SITES)
def test_they_add_up_to_what_the_output_does_for_the_answer(model, site):
    """What integrated gradients promise: the score with the output less that without it."""
    ids = document().input_ids[:, :PROMPT]
    logits = logits_after(model, ids)
    answer = int(logits.argmax())

    def leave_out(module, inputs, output):
        return torch.cat([output[:, :-1], 0 * output[:, -1:]], dim=1)

    handle = model.hf.get_submodule(site).register_forward_hook(leave_out)
    without = logits_after(model, ids)
    handle.remove()
    output, gradient = _along(model, site, prompt_of(ids), answer, 65)
    torch.testing.assert_close((output * gradient).sum(), (logits - without)[answer], atol=1e-5, rtol=1e-3)


def test_counts_over_documents_are_of_the_lowest_signed_scores_at_the_prompts_end(model):
    sites = {name: Site(name, *reversed(model.hf.get_submodule(name).weight.shape)) for name in SITES}
    empty = Batch(
        document().input_ids,
        document().position_ids,
        ((0, 0, LENGTH),),
        torch.empty(0).long(),
        torch.empty(0),
    )
    batches, seen = [document(0), document(1), empty], []
    model.train()
    found = measure_along_path(
        model,
        sites,
        batches,
        lambda site, name: LowAttribution(percent=25.0),
        ["low_attribution"],
        seen.append,
    )
    assert seen == [1, 2, 3] and model.training
    for site, signals in found.items():
        width = sites[site].out_features
        expected = torch.zeros(width)
        for batch in batches[:2]:
            lowest = by_hand(model.eval(), site, batch.input_ids[:, :PROMPT], 7).topk(
                width // 4, largest=False
            )
            expected[lowest.indices] += 1
        assert torch.equal(signals["low_attribution"], expected) and expected.sum() == 2 * (width // 4)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_lowest_means_most_negative_and_ties_go_to_the_first():
    signal = LowAttribution(percent=40.0)
    one = torch.ones(1, 5)
    signal.update(
        one, torch.tensor([[0.1, -2.0, 3.0, 0.0, 0.0]]), Tokens(torch.zeros(1).long(), torch.zeros(1).long())
    )
    assert signal.result().tolist() == [0, 1, 0, 1, 0]
