"""Write the quickstart data: sentences about orders, and the JSON record each one means.

    python scripts/make_quickstart_data.py [FOLDER]

600 training rows and 100 test rows of `prompt` and `completion`, the same bytes every time. Every record is
another, and no (name, item, city) of a test row appears in training: the test asks for new combinations.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "recipes" / "data" / "quickstart"
SEED = 2024
TRAIN_ROWS, TEST_ROWS = 600, 100

NAMES = (
    "Maria Jonas Amina Peter Lucia Omar Ingrid Tomas Yuki Clara David Nadia "
    "Felix Priya Hugo Elena Samuel Leila Marco Sofia Erik Grace Ivan Rosa"
).split()
ITEMS = {  # singular -> plural
    **{word: f"{word}s" for word in "lamp chair table book jacket pillow bottle basket".split()},
    **{word: f"{word}s" for word in "blanket mirror candle ladder helmet carpet mug tent".split()},
    **{word: f"{word}es" for word in "box brush watch dress bench".split()},
    **{"knife": "knives", "shelf": "shelves", "scarf": "scarves"},
}
COLORS = "red blue green yellow black white brown purple orange grey".split()
CITIES = (
    "Oslo Paris Lisbon Cairo Berlin Madrid Vienna Dublin Prague Athens Rome Lima "
    "Boston Tokyo Delhi Seoul Toronto Nairobi Warsaw Geneva Chicago Sydney Milan"
).split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
NUMBERS = "two three four five six seven eight nine ten eleven twelve".split()

SHAPES = (
    "Order: {name} wants {count} {color} {items} delivered to {city} on {day}.",
    "{name} from {city} ordered {count} {color} {items} for {day}.",
    "Please send {count} {color} {items} to {name} in {city} by {day}.",
    "On {day}, {name} will pick up {count} {color} {items} in {city}.",
    "Ship {count} {items}, all {color}, to {name}, {city}, arriving {day}.",
    "{city}, {day}: {count} {color} {items} for {name}.",
    "Could {name} get {count} {color} {items} in {city} on {day}?",
    "For {day} we need {count} {items} in {color}; customer {name}, address {city}.",
    "{name} asked for {count} {items}. Color {color}. Deliver to {city} on {day}.",
    "Reserve {count} {color} {items} for {name}; our {city} shop hands them over on {day}.",
    "{count} {color} {items} go to {city} on {day}. The buyer is {name}.",
    "This is {name}. I would like {count} {color} {items} brought to {city} on {day}, please.",
)

Record = dict[str, str | int]


def make(seed: int = SEED) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Training and test rows, a function of the seed alone."""
    rng = random.Random(seed)
    seen: set[str] = set()
    known: set[tuple[str | int, ...]] = set()
    train_rows: list[dict[str, str]] = []
    while len(train_rows) < TRAIN_ROWS:
        record = _record(rng)
        if _is_new(record, seen):
            known.add(_subject(record))
            train_rows.append(_row(record, rng))
    test_rows: list[dict[str, str]] = []
    while len(test_rows) < TEST_ROWS:
        record = _record(rng)
        if _subject(record) not in known and _is_new(record, seen):
            test_rows.append(_row(record, rng))
    return train_rows, test_rows


def write(folder: Path = FOLDER) -> None:
    """Write `train.jsonl` and `test.jsonl` into `folder`."""
    write_splits(folder, make())


def write_splits(folder: Path, splits: Sequence[Sequence[Mapping[str, object]]]) -> None:
    """The same of other rows for training and for testing."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in zip(("train", "test"), splits, strict=True):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_bytes(text.encode())


def _record(rng: random.Random) -> Record:
    return {
        "name": rng.choice(NAMES),
        "item": rng.choice(tuple(ITEMS)),
        "count": 2 + rng.randrange(len(NUMBERS)),
        "color": rng.choice(COLORS),
        "city": rng.choice(CITIES),
        "day": rng.choice(DAYS),
    }


def _is_new(record: Record, seen: set[str]) -> bool:
    key = json.dumps(record)
    new = key not in seen
    seen.add(key)
    return new


def _subject(record: Record) -> tuple[str | int, ...]:
    return record["name"], record["item"], record["city"]


def _row(record: Record, rng: random.Random) -> dict[str, str]:
    count = int(record["count"])
    spelled = rng.choice((str(count), NUMBERS[count - 2]))
    words = record | {"items": ITEMS[str(record["item"])], "count": spelled}
    sentence = rng.choice(SHAPES).format(**words)
    return {"prompt": sentence[0].upper() + sentence[1:], "completion": json.dumps(record)}


if __name__ == "__main__":
    write(*(Path(folder) for folder in sys.argv[1:2]))
