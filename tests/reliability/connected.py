"""Checks whose engines count in their own way, as `scripts/reliability.py` asks for them: `(n, seed)` -> `Outcome`."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from tests.reliability import damage, full_disk
from tests.reliability.kills import run_chains, run_kills
from tests.reliability.outcome import ROOT, Outcome, tiny_model
from tests.reliability.random_signals import run_signals

SHARE_IN_A_SAVE = 0.3  # of the kills
CHAINED = 6  # kills for each chain of five
# Eight steps with three saves, scored at the end by two tasks.
RECIPE = """
model: {{name: {model}, dtype: bfloat16}}
quantization: nf4
adapter: {{method: lora, rank: 4, dropout: 0.1}}
optimizer: {{method: adamw, lr: 0.003}}
data:
  train: {{source: {data}/train.jsonl, limit: 60}}
  eval: {{source: {data}/test.jsonl, limit: 6}}
  format: {{method: prompt_completion, render: chat}}
train: {{max_steps: 8, batch_size: 2, max_length: 160, save_every: 3, eval_every: 4, device: cpu}}
eval: {{at_end: true, tasks: [loss, {{method: exact_match, max_new_tokens: 4}}]}}
"""


class Figures(Protocol):
    """What the engines of kills and signals give back."""

    identical: int
    faults: list[str]


def kills(n: int, seed: int) -> Outcome:
    """R1 and R2: `n` trainings killed once, three of ten inside a save, and a chain of five kills for each six."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe, inside = _recipe(folder), round(SHARE_IN_A_SAVE * n)
        single = run_kills(recipe, folder / "single", n, inside, seed, _quiet)
        chains = (
            run_chains(recipe, folder / "chains", n // CHAINED, seed, told=_quiet) if n >= CHAINED else None
        )
    tried = single.runs + (0 if chains is None else chains.runs)
    found = _outcome(tried, [single] if chains is None else [single, chains])
    found.facts, found.counts = {"redone": single.redone}, {"in_a_save": single.in_a_save}
    return found


def signals(n: int, seed: int) -> Outcome:
    """R3: `n` signals at random instants of train, merge and others."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures = run_signals(_recipe(folder), folder / "work", n, seed, _quiet)
    found = Outcome(figures.signals, figures.signals - len(figures.faults), figures.faults)
    found.facts = {"slowest_seconds": round(figures.slowest, 2)}
    return found


def damaged(n: int, seed: int) -> Outcome:
    """R5: checkpoints in two thirds of the cases, other files of a run folder in the rest."""
    parts = (damage.damaged_checkpoints(n - n // 3, seed), damage.damaged_run_folders(n // 3, seed))
    return Outcome(
        sum(part.tried for part in parts),
        sum(part.held for part in parts),
        [line for part in parts for line in part.failures],
    )


def disk(n: int, seed: int) -> Outcome:
    """R6: `n` operations of commands drawn at random fail, each with some error, once or for good."""
    draw, found = random.Random(seed), Outcome()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        bench = full_disk.Bench(folder / "bench", tiny_model(folder))
        for _ in range(n):
            command = draw.choice(tuple(full_disk.COMMANDS))
            at = draw.randint(1, bench.whole(command)[1])
            number, stays = draw.choice(tuple(full_disk.ERRORS)), draw.random() < 0.5
            wrong = full_disk.attack(bench, command, at, number, stays)
            found.add(not wrong, "; ".join(wrong))
    return found


def _recipe(folder: Path) -> Path:
    path = folder / "tiny.yaml"
    data = ROOT / "recipes" / "data" / "quickstart"
    path.write_text(RECIPE.format(model=tiny_model(folder), data=data))
    return path


def _outcome(tried: int, figures: list[Figures]) -> Outcome:
    faults = [line for one in figures for line in one.faults]
    return Outcome(tried, sum(one.identical for one in figures), faults)


_quiet: Callable[[str], object] = len
