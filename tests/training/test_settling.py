"""An adapter's own step comes after every update, with the rate of that update."""

from __future__ import annotations

import pytest
import torch

from lrft.core.callback import Callback
from lrft.core.settling import Settling
from lrft.training.loop import train_steps
from tests.training.test_step import job_of


class Noting(Settling):
    def __init__(self, param):
        self.param, self.told = param, []

    def settle(self, rates):
        assert not torch.is_grad_enabled()
        self.told.append((rates[self.param], self.param.detach().clone()))


class Rates(Callback):
    def __init__(self, param):
        self.param, self.seen = param, []

    def before_step(self, run):
        self.rate = run.optimizer.param_groups[0]["lr"]

    def after_step(self, run):
        self.seen.append((self.rate, self.param.detach().clone()))


@pytest.mark.parametrize("optimizer", ["{method: adamw, lr: 0.01}", "{method: mezo, lr: 0.001}"])
def test_it_is_told_the_rate_of_every_update_when_parameters_have_moved(recipe_file, tmp_path, optimizer):
    (tmp_path / "run").mkdir()
    quiet = ["train.save_every=100", "~train.eval_every", "train.clip=null", "train.max_steps=3"]
    job = job_of(recipe_file, tmp_path, *quiet, f"optimizer={optimizer}")
    param = next(info.param for info in job.run.parameters if info.role == "lora_B")
    noting, rates = Noting(param), Rates(param)
    job.run.settling = [noting]
    job.run.callbacks.append(rates)
    before = param.detach().clone()
    train_steps(job.run, job.steps(), job.objective)
    assert len(noting.told) == 3 and len({rate for rate, _ in noting.told}) > 1
    for (rate, value), (own, after) in zip(noting.told, rates.seen, strict=True):
        assert rate == own and torch.equal(value, after)
    assert not torch.equal(before, noting.told[-1][1])
