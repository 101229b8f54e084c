"""An optimizer that takes its gradients beside an average of the steps: between two steps there is the average."""

from __future__ import annotations

import torch

from lrft.core.callback import Callback
from lrft.training.loop import train_steps
from tests.training.test_step import job_of


class Watch(Callback):
    """Where the parameters are at each event, and z."""

    def __init__(self, param):
        self.param, self.seen = param, []

    def note(self, run, event):
        z = run.optimizer.state[self.param].get("z") if self.param in run.optimizer.state else None
        self.seen.append((event, self.param.detach().clone(), None if z is None else z.clone()))

    def before_step(self, run):
        self.note(run, "before")

    def after_backward(self, run):
        self.note(run, "gradient")

    def after_step(self, run):
        self.note(run, "after")


def test_the_loop_takes_gradients_ahead_and_leaves_the_average_between_steps(recipe_file, tmp_path):
    (tmp_path / "run").mkdir()
    quiet = ["train.save_every=100", "~train.eval_every", "train.max_steps=4", "schedule=constant"]
    job = job_of(recipe_file, tmp_path, *quiet, "optimizer={method: schedule_free, lr: 0.01}")
    param = next(info.param for info in job.run.parameters if info.role == "lora_A")
    watch = Watch(param)
    job.run.callbacks.append(watch)
    train_steps(job.run, job.steps(), job.objective)
    by = {
        event: [entry[1:] for entry in watch.seen if entry[0] == event]
        for event in ("before", "gradient", "after")
    }
    for (x, z), (y, _) in list(zip(by["before"], by["gradient"], strict=True))[2:]:
        assert not torch.allclose(y, x, atol=1e-5)
        torch.testing.assert_close(y, 0.1 * z + 0.9 * x, rtol=1e-6, atol=1e-7)
    for (after, _), (before, _) in zip(by["after"][:-1], by["before"][1:], strict=True):
        assert torch.equal(after, before)
    assert torch.equal(param, by["after"][-1][0])
