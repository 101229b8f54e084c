"""Write the unpaired data: an order, one record of it, and whether that record is wanted.

    python scripts/make_unpaired_data.py [FOLDER]

The rows of the preference data in their order, every second one with its rejected record.
"""

from __future__ import annotations

import sys
from pathlib import Path

import make_preference_data
from make_quickstart_data import write_splits

FOLDER = Path(__file__).parents[1] / "recipes" / "data" / "unpaired"


def write(folder: Path = FOLDER) -> None:
    """Write `train.jsonl` and `test.jsonl` into `folder`."""
    judged = [
        [_row(row, place % 2 == 0) for place, row in enumerate(rows)] for rows in make_preference_data.make()
    ]
    write_splits(folder, judged)


def _row(pair: dict[str, str], wanted: bool) -> dict[str, str | bool]:
    completion = pair["chosen" if wanted else "rejected"]
    return {"prompt": pair["prompt"], "completion": completion, "label": wanted}


if __name__ == "__main__":
    write(*(Path(folder) for folder in sys.argv[1:2]))
