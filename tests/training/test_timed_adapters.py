"""What an adapter does between the steps of a run."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch.utils.checkpoint import checkpoint

from lrft.build import callbacks
from lrft.core.batch import Batch
from lrft.core.callback import TimedMethod
from lrft.core.context import computing, is_first_pass
from lrft.registry.axes import ADAPTERS, SELECTORS


class Counts(TimedMethod):
    """Nothing."""


def test_it_comes_with_the_adapter_and_after_what_the_recipe_chose(monkeypatch):
    sections = {"allocate": None, "restart": None, "select": SELECTORS.settings("badam"), "prune": None}
    recipe = SimpleNamespace(adapter=ADAPTERS.settings("lora"), **sections)
    chosen = [type(method) for method in callbacks._timed_methods(recipe)]
    monkeypatch.setattr(ADAPTERS.get("lora"), "timed", classmethod(lambda cls, config: Counts(config)))
    methods = callbacks._timed_methods(recipe)
    assert [type(method) for method in methods] == [*chosen, Counts] and len(chosen) == 1
    assert methods[-1].config is recipe.adapter


def test_a_pass_is_counted_once_and_not_one_beyond_the_step():
    seen = []

    def forward(x):
        seen.append(is_first_pass())
        return x * x

    batch = Batch(torch.zeros(1, 1), torch.zeros(1, 1), ((0, 0, 1),), torch.zeros(0), torch.zeros(0))
    for counts in (True, False):
        with computing(batch, 0, counts=counts):
            checkpoint(forward, torch.ones(1, requires_grad=True), use_reentrant=False).backward()
    assert seen == [True, False, False, False] and is_first_pass()
