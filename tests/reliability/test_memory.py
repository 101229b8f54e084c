"""A run holds no more memory and no more files the longer it lasts."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lrft.model import heap
from lrft.training import loop
from tests.reliability import soak
from tests.reliability.outcome import ROOT

SHAPES = """
import os, torch
from lrft.model import heap
if {bounded}: heap.bound_caches()
torch.set_grad_enabled(False)
w = torch.randn(192, 576, dtype=torch.bfloat16)
def grown(first, last):
    before = resident()
    for n in range(first, last): torch.randn(n, 576, dtype=torch.bfloat16) @ w.T
    return (resident() - before) // 2**20
def resident(): return int(open("/proc/self/statm").read().split()[1]) * 4096
grown(64, 364)
print(grown(364, 564))
"""


def growth(bounded: bool) -> int:
    """MiB that two hundred more shapes leave, in a process of its own after three hundred."""
    environment = {k: v for k, v in os.environ.items() if k not in heap.CACHES}
    done = subprocess.run(
        [sys.executable, "-c", SHAPES.format(bounded=bounded)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.slow
def test_products_of_ever_other_shapes_hold_no_more_memory():
    """Without the bound each shape leaves its program: the test knows the growth that it looks for."""
    import torch

    if not torch.backends.mkldnn.is_available() or "AVX512" not in torch.backends.cpu.get_cpu_capability():
        pytest.skip("torch multiplies bfloat16 without oneDNN here")
    assert growth(bounded=False) > 40
    assert growth(bounded=True) < 15


def test_what_the_environment_says_of_the_caches_stays(monkeypatch):
    first, second = heap.CACHES
    monkeypatch.setenv(first, "7")
    monkeypatch.delenv(second, raising=False)
    heap.bound_caches()
    assert (os.environ[first], os.environ[second]) == ("7", heap.KEPT)
    monkeypatch.delenv(second)


@pytest.mark.parametrize("every", [2, 3])
def test_freed_pages_go_back_while_a_run_trains(monkeypatch, every):
    given = []
    monkeypatch.setattr(loop.heap, "EVERY", every)
    monkeypatch.setattr(loop.heap, "give_back", lambda: given.append(1))
    found = soak.check(10, 0)
    # Once more when the model is loaded, which is not the loop's.
    assert len(given) == 10 // every + 1
    assert found.facts["files"] > 0


@pytest.mark.slow
def test_a_long_run_holds_its_memory_and_its_files():
    found = soak.check(1000, 0)
    assert found.failures == []
