"""KTO's own statements: the equation, a reference point of mismatched rows, a start without a preference."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from lrft.core.batch import IGNORED
from lrft.core.params import ParamInfo
from lrft.data.collate import collate
from lrft.methods.objectives._mismatched import mismatched
from lrft.recipe.load import load_recipe
from lrft.registry.errors import DataError, RecipeError
from tests.methods.objectives.told import Table, answer, batch_of, drawn, judged, objective

ROWS = [([0, 1], [2, 3, 1], True), ([2], [1, 1], False), ([3, 3], [2], True), ([1], [0, 2, 2, 3], False)]
BETA = 0.7
WEIGHTS = {"beta": BETA, "desirable": 1.3, "undesirable": 0.8}


def run_of(model):
    run = SimpleNamespace(parameters=[ParamInfo("B", model.logits, "lora_B", "table")], metrics={})
    run.record = lambda **found: run.metrics.update(found)
    return run


def direct(policy, reference, rows):
    """Loss, z and beta r, the way the paper writes them."""
    gain = [(answer(policy, x, y) - answer(reference, x, y)).sum() for x, y, _ in rows]
    shifted = [y for _, y, _ in rows[1:] + rows[:1]]
    apart = [
        answer(policy, x, y) - answer(reference, x, y) for (x, _, _), y in zip(rows, shifted, strict=True)
    ]
    z = torch.stack([one.sum() for one in apart]).mean().clamp(min=0).detach()
    loss = 0.0
    for r, (_, _, wanted) in zip(gain, rows, strict=True):
        weight = WEIGHTS["desirable"] if wanted else WEIGHTS["undesirable"]
        value = torch.sigmoid(BETA * (r - z)) if wanted else torch.sigmoid(BETA * (z - r))
        loss = loss + weight * (1 - value)
    return loss, z, BETA * torch.stack(gain).detach()


@pytest.mark.parametrize("seeds", [(0, 1), (4, 2), (1, 0)])
def test_loss_gradient_and_records_are_those_of_the_equation(seeds):
    reference, policy = map(drawn, seeds)
    model = Table(reference, policy)
    run = run_of(model)
    loss = objective("kto", **WEIGHTS)(model, batch_of(*(judged(*row) for row in ROWS)), run)
    loss.backward()
    logits = torch.tensor(policy).log().mT.clone().requires_grad_(True)
    expected, z, rewards = direct(logits.log_softmax(0), torch.tensor(reference).log().mT, ROWS)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(model.logits.grad, logits.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(run.metrics["kl"], z)
    torch.testing.assert_close(run.metrics["reward_wanted"], rewards[0::2].mean())
    torch.testing.assert_close(run.metrics["reward_unwanted"], rewards[1::2].mean())


def test_the_reference_point_is_not_always_zero():
    """So that the comparison above is of one."""
    found = [
        direct(*(torch.tensor(drawn(seed)).log().mT for seed in pair), ROWS)[1]
        for pair in ((1, 0), (2, 4), (0, 1))
    ]
    assert any(z > 0.1 for z in found)


def test_at_step_0_every_row_is_at_half_of_its_weight_and_is_drawn_its_own_way():
    model = Table(drawn(3), drawn(3))
    loss = objective("kto", **WEIGHTS)(model, batch_of(*(judged(*row) for row in ROWS)), run_of(model))
    assert loss.item() == pytest.approx(1.3 + 0.8, abs=1e-5)
    loss.backward()
    table = torch.tensor(drawn(3)).log().mT.clone().requires_grad_(True)
    for (x, y, wanted), w in zip(ROWS, (1.3, 0.8, 1.3, 0.8), strict=True):
        (-(1 if wanted else -1) * w * BETA / 4 * answer(table.log_softmax(0), x, y).sum()).backward()
    torch.testing.assert_close(model.logits.grad, table.grad, rtol=1e-4, atol=1e-5)


def test_mismatched_rows_are_prompts_with_the_answers_of_the_next_row_packed_or_not():
    rows = [judged(*row) for row in ROWS]
    expected = [x + y for (x, _, _), (_, y, _) in zip(ROWS, ROWS[1:] + ROWS[:1], strict=True)]
    for layout in ([[0], [1], [2], [3]], [[0, 1], [2, 3]]):
        found = mismatched(collate([[rows[k] for k in line] for line in layout], 0, None, layout))
        assert [found.input_ids[r, a:b].tolist() for r, a, b in found.documents] == expected
        shifted = torch.nn.functional.pad(found.input_ids, (0, 1))[:, 1:].flatten()
        assert torch.equal(shifted[found.supervised], found.targets) and IGNORED not in found.targets
        assert found.document_sums(torch.ones(len(found.targets))).tolist() == [2, 1, 4, 3]


def test_a_row_alone_has_no_reference_point_and_what_cannot_be_compared_is_refused():
    model, kto = Table(drawn(0), drawn(1)), objective("kto")
    run = run_of(model)
    kto(model, batch_of(judged(*ROWS[0])), run)
    assert run.metrics["kl"] == 0 and "reward_unwanted" not in run.metrics
    with pytest.raises(DataError, match=r"kto learns from answers that are wanted .* data\.format: unpaired"):
        kto(model, batch_of(judged([0], [1], None)))
    with pytest.raises(RecipeError, match="kto compares with the answers of other rows"):
        load_recipe("smoke/kto", ["train.batch_size=1"])
    run.parameters.append(ParamInfo("norm", model.logits, "vector"))
    with pytest.raises(RecipeError, match="kto measures against the base"):
        kto(model, batch_of(judged(*ROWS[0])), run)
