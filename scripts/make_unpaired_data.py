"""Write the unpaired data: an order, one record of it, and whether that record is wanted.

    python scripts/make_unpaired_data.py [FOLDER]

The rows of the preference data in their order, every second one with its rejected record.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import make_preference_data

FOLDER = Path(__file__).parents[1] / "recipes" / "data" / "unpaired"


def write(folder: Path = FOLDER) -> None:
    """Write `train.jsonl` and `test.jsonl` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in zip(("train", "test"), make_preference_data.make(), strict=True):
        judged = [_row(row, place % 2 == 0) for place, row in enumerate(rows)]
        (folder / f"{name}.jsonl").write_bytes("".join(json.dumps(row) + "\n" for row in judged).encode())


def _row(pair: dict[str, str], wanted: bool) -> dict[str, str | bool]:
    completion = pair["chosen" if wanted else "rejected"]
    return {"prompt": pair["prompt"], "completion": completion, "label": wanted}


if __name__ == "__main__":
    write(*(Path(folder) for folder in sys.argv[1:2]))
