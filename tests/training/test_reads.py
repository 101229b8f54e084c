"""The host reads one thing of a step, loss and norm together: on a GPU every read waits for all that was queued."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lrft.core.callback import Callback
from lrft.training.loop import train_steps
from tests.training.test_step import job_of

READS = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "unique2", "equal")


class Reads(TorchDispatchMode):
    """Operations whose result the host has to wait for; the state of a generator is on the host everywhere."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in READS and args[0].dtype != torch.uint8:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


CASES = {
    "lora": ["adapter={method: lora, rank: 4}"],
    "dora": ["adapter={method: dora, rank: 4}"],
    "dropout": ["adapter={method: lora, rank: 4, dropout: 0.1}"],
    "no clipping": ["adapter={method: lora, rank: 4}", "train.clip=null"],
    "recomputed": ["adapter={method: dora, rank: 4, dropout: 0.1}", "model.activation_checkpointing=true"],
}


def reads_of_each_step(job, monkeypatch):
    """Reads between one step's end and the next one's, of steps after which nothing is scored or saved."""
    counted, reads = [], Reads()
    tolist = torch.Tensor.tolist

    def listed(tensor):
        reads.found.append("tolist")  # a copy to the host and no operation of its own
        return tolist(tensor)

    monkeypatch.setattr(torch.Tensor, "tolist", listed)

    class Counter(Callback):
        def after_step(self, run):
            counted.append(tuple(reads.found))
            reads.found.clear()

    job.run.callbacks.append(Counter())
    with reads:
        train_steps(job.run, job.steps(), job.objective)
    return counted


@pytest.mark.parametrize("overrides", CASES.values(), ids=CASES)
def test_a_step_is_read_once(recipe_file, tmp_path, monkeypatch, overrides):
    monkeypatch.setattr("lrft.ops.dropout.SPARSE", 0.0)  # draw as on a GPU
    more = ["~adapter.dropout", *overrides, "train.save_every=100", "~train.eval_every"]
    (tmp_path / "run").mkdir()
    job = job_of(recipe_file, tmp_path, *more, dtype="bfloat16")
    for group in job.run.optimizer.param_groups:
        group["fused"] = True  # as on a GPU
    counted = reads_of_each_step(job, monkeypatch)
    # The first two steps look at every gradient, and the last is saved.
    assert counted[2:-1] == [("tolist",)] * 5


def test_the_counter_sees_a_second_read(recipe_file, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    job = job_of(recipe_file, tmp_path, "train.save_every=100", "~train.eval_every")
    objective = job.objective

    def reading(model, batch, run):
        loss = objective(model, batch, run)
        assert float(loss.detach()) > 0
        return loss

    reading.divisor, reading.whole_step = objective.divisor, objective.whole_step
    job.objective = reading
    for group in job.run.optimizer.param_groups:
        group["fused"] = True
    assert reads_of_each_step(job, monkeypatch)[3].count("_local_scalar_dense") == 2  # one a micro-batch
