"""What a check of the reliability plan gives back, and the small recipe that most of them train."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType

from lrft.recipe.load import LoadedRecipe, load_recipe

ROOT = Path(__file__).parents[2]
KEPT = 20  # failures that a record names

RECIPE = """
model: {{name: {model}, dtype: {dtype}}}
adapter: {{method: lora, rank: 4, dropout: 0.1}}
optimizer: {{method: adamw, lr: 0.003}}
schedule: {{method: cosine, warmup_ratio: 0.1}}
data:
  train: {{source: {data}/train.jsonl, limit: 60}}
  format: {{method: prompt_completion, render: chat}}
train: {{max_steps: 4, batch_size: 2, max_length: 160, save_every: 2, device: cpu}}
"""


@dataclass
class Outcome:
    """How many faults were tried, how many left everything as promised, and what became of the others.

    Attributes:
        facts: measures, of which a record keeps the largest.
        counts: numbers of events, which a record adds up.
    """

    tried: int = 0
    held: int = 0
    failures: list[str] = field(default_factory=list)
    facts: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, held: bool, failure: str) -> None:
        """One more; the sentence is kept where it did not hold."""
        self.tried += 1
        self.held += held
        if not held and len(self.failures) < KEPT:
            self.failures.append(failure)


Check = Callable[[int, int], Outcome]
"""`(n, seed)` -> the outcome of n faults drawn from the seed."""


@cache
def tiny_model(folder: Path) -> Path:
    """A two-layer random model with its tokenizer, made in `folder` once."""
    return Path(maker().make(folder / "tiny", "llama", tied=True, bias=False))


def maker() -> ModuleType:
    """scripts/make_tiny_model.py as a module."""
    spec = importlib.util.spec_from_file_location("make_tiny_model", ROOT / "scripts" / "make_tiny_model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tiny(folder: Path, overrides: Sequence[str] = (), dtype: str = "bfloat16") -> LoadedRecipe:
    """The small recipe with overrides, written into `folder` with its model."""
    path = folder / f"tiny-{dtype}.yaml"
    data = ROOT / "recipes" / "data" / "quickstart"
    path.write_text(RECIPE.format(model=tiny_model(folder), dtype=dtype, data=data))
    return load_recipe(path, overrides)
