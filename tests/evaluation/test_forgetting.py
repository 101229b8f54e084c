"""Before and after, on models of which one is the other and of which it is not."""

import math

import pytest
import torch

from lrft.core.adapted import adapted, adapters_off
from lrft.evaluation.tasks.forgetting import choice_scores, loss_scores
from lrft.registry.axes import TASKS
from lrft.registry.config import parse_choice
from lrft.registry.errors import UsageError
from tests.evaluation.conftest import adapt
from tests.evaluation.test_multiple_choice import LETTERS, TRUTH

ROWS = [{"prompt": f"Say {k}: ", "completion": f"{k} and {k + 1}"} for k in range(6)]


def score(subject, task="forgetting", **settings):
    return TASKS.get(task)(parse_choice(TASKS, {"method": task, **settings})).run(subject, None)


@pytest.fixture
def subject(make_subject):
    made = make_subject(rows=ROWS)
    adapt(made, "none")
    return made


def test_both_losses_are_those_of_the_loss_task(subject):
    found = score(subject).metrics
    after = score(subject, "loss").metrics
    with adapters_off(subject.model):
        before = score(subject, "loss").metrics
    assert found["loss_after"] == pytest.approx(after["loss"], rel=1e-6)
    assert found["loss_before"] == pytest.approx(before["loss"], rel=1e-6)
    assert found["tokens"] == after["tokens"]
    assert found["loss_change_low"] <= found["loss_change"] <= found["loss_change_high"]
    assert found["ratio"] == pytest.approx(found["perplexity_after"] / found["perplexity_before"])


def test_what_changed_nothing_forgot_nothing(subject, tmp_path):
    for _, site in adapted(subject.model):
        torch.nn.init.zeros_(site.adapter.get_parameter("B"))
    path = tmp_path / "choices.jsonl"
    import json

    path.write_text("".join(json.dumps(row) + "\n" for row in (LETTERS, TRUTH)))
    found = score(subject, choices=str(path), choices_format="instruction").metrics
    assert found["loss_change"] == found["loss_change_low"] == found["loss_change_high"] == 0
    assert found["acc_before"] == found["acc_after"] and found["mcnemar_p"] == 1


def test_the_numbers_of_rows_that_are_known():
    found = loss_scores([(2.0, 4.0, 2), (3.0, 3.0, 3)])
    assert found["loss_before"] == 1 and found["loss_change"] == pytest.approx(2 / 5)
    assert found["perplexity_before"] == pytest.approx(math.e)
    assert (found["loss_change_low"], found["loss_change_high"]) == (0, 1)
    assert loss_scores([(1.0, 900.0, 1)])["ratio"] == math.inf  # a double cannot hold it
    choices = choice_scores([True, True, False, True], [False, True, True, False])
    assert choices["lost"] == 2 and choices["gained"] == 1 and choices["acc_change"] == -0.25


def test_base_weights_that_trained_have_no_before(subject):
    next(subject.model.hf.parameters()).requires_grad_(True)
    with pytest.raises(UsageError, match="forgetting: compares with the model before training"):
        score(subject)
