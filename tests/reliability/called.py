"""A command called in this process on a small run, and which cases of many are quick."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lrft.cli import main

DATA = Path(__file__).parents[2] / "recipes" / "data" / "quickstart"
RECIPE = """
model: {{name: {model}, dtype: float32}}
adapter: {{method: lora, rank: 2}}
data:
  train: {{source: {data}/train.jsonl, limit: 8}}
  eval: {{source: {data}/test.jsonl, limit: 2}}
  format: {{method: prompt_completion, render: chat}}
train: {{max_steps: 1, batch_size: 1, max_length: 160, device: cpu}}
eval: {{tasks: [loss]}}
"""


def cases(every, quick):
    """All of them, those that are not quick marked slow: each opens a run or calls a command several times."""
    return [one if one in quick else pytest.param(one, marks=pytest.mark.slow) for one in every]


def lrft(monkeypatch, capfd, *arguments):
    """Exit code and everything that was printed."""
    monkeypatch.setattr(sys, "argv", ["lrft", *map(str, arguments)])
    capfd.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code or 0, "".join(capfd.readouterr())
