"""Write the preference data: an order, what it orders as a JSON record, and a record with one wrong value.

    python scripts/make_preference_data.py [FOLDER]

The first 96 training and 16 test rows of the quickstart data as `prompt`, `chosen` and `rejected`, the same bytes
every time. One key of every rejected record, drawn at random, has the value of another order.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import make_quickstart_data

FOLDER = Path(__file__).parents[1] / "recipes" / "data" / "preference"
SEED = 2025
TRAIN_ROWS, TEST_ROWS = 96, 16
KEYS = ("item", "count", "city")


def make(seed: int = SEED) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Training and test rows, a function of the seed alone."""
    rng = random.Random(seed)
    train, test = make_quickstart_data.make()
    return [_row(row, train, rng) for row in train[:TRAIN_ROWS]], [
        _row(row, test, rng) for row in test[:TEST_ROWS]
    ]


def write(folder: Path = FOLDER) -> None:
    """Write `train.jsonl` and `test.jsonl` into `folder`."""
    make_quickstart_data.write_splits(folder, make())


def _row(row: dict[str, str], others: list[dict[str, str]], rng: random.Random) -> dict[str, str]:
    right = _ordered(row)
    key = rng.choice(KEYS)
    values = sorted({_ordered(other)[key] for other in others} - {right[key]})
    wrong = right | {key: rng.choice(values)}
    return {"prompt": row["prompt"], "chosen": json.dumps(right), "rejected": json.dumps(wrong)}


def _ordered(row: dict[str, str]) -> make_quickstart_data.Record:
    record = json.loads(row["completion"])
    return {key: record[key] for key in KEYS}


if __name__ == "__main__":
    write(*(Path(folder) for folder in sys.argv[1:2]))
