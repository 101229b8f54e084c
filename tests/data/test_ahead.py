"""Steps made in a background thread are those made in the loop, and nothing of the thread is left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from contextlib import closing

import pytest
import torch

from lrft.data.ahead import AHEAD, THREAD, made_ahead
from lrft.data.steps import TrainData
from lrft.registry.errors import DataError
from tests.data.test_steps import SETTINGS, equal, rows  # noqa: F401


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith(THREAD)]


@pytest.fixture
def pinned(monkeypatch):
    """Tensors that were asked to be pinned, which needs a GPU."""
    found = []

    def pin(tensor):
        found.append((tensor, threading.current_thread().name))
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    return found


def test_steps_for_a_gpu_are_those_for_a_cpu(rows, pinned):  # noqa: F811
    plain, ahead = TrainData(rows, **SETTINGS), TrainData(rows, **SETTINGS)
    with closing(ahead.between(3, 30, "cuda")) as steps:
        for step, made in zip(range(3, 30), steps, strict=True):
            expected = plain.at(step)
            assert (made.targets, made.tokens, made.epoch) == (
                expected.targets,
                expected.tokens,
                expected.epoch,
            )
            assert len(made.micro_batches) == len(expected.micro_batches)
            assert all(map(equal, made.micro_batches, expected.micro_batches))
    assert len(pinned) == 4 * sum(len(plain.at(step).micro_batches) for step in range(3, 30))
    assert all(name.startswith(THREAD) for _, name in pinned)
    assert not threads()


def test_steps_for_a_cpu_are_made_in_the_loop_and_pin_nothing(rows, pinned):  # noqa: F811
    data = TrainData(rows, **SETTINGS)
    with closing(data.between(0, 5)) as steps:
        assert next(steps).tokens == data.at(0).tokens
        assert not threads() and not pinned


def test_no_more_than_a_few_steps_are_made_before_they_are_asked_for():
    made = []

    def make(step):
        made.append(step)
        return step

    with closing(made_ahead(make, range(10, 100))) as steps:
        for step in range(10, 14):
            assert next(steps) == step
        time.sleep(0.2)
        assert made == list(range(10, 14 + AHEAD))
    assert not threads()
    assert list(made_ahead(make, range(4, 6))) == [4, 5]
    assert list(made_ahead(make, range(4, 4))) == []


def test_an_error_comes_at_its_step_and_is_the_one_that_was_raised():
    wrong = DataError("row 7 is no more")

    def make(step):
        if step == 7:
            raise wrong
        return step

    taken = []
    with pytest.raises(DataError) as raised:
        for step in made_ahead(make, range(3, 12)):
            taken.append(step)
    assert raised.value is wrong
    assert taken == [3, 4, 5, 6]
    assert not threads()


def test_a_loop_that_ends_early_leaves_no_thread():
    with (
        pytest.raises(RuntimeError, match="as in a step"),
        closing(made_ahead(lambda step: step, range(9))) as steps,
    ):
        for step in steps:
            if step == 2:
                raise RuntimeError("as in a step")
    assert not threads()


SCRIPT = """
import time
from lrft.data.ahead import made_ahead
steps = made_ahead(lambda step: time.sleep(0.05) or step, range(10**6))
for step in steps:
    if step == 2:
        print("running", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_the_process_at_once(number):
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"running\n"
        process.send_signal(number)
        assert process.wait(20) in (-number, 1)  # 1: an interpreter that showed where it was
