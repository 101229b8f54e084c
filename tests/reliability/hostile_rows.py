"""R9: a data file in which one thing is wrong: one sentence that names the file, and the line where there is one."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path

from lrft.api.data.check import check_data
from lrft.build.text import check_text
from lrft.recipe.load import load_recipe
from lrft.registry.errors import LrftError
from tests.reliability.outcome import Outcome, tiny

ROW = {"prompt": "How many apples?", "completion": "Three."}
GOOD = (json.dumps(ROW) + "\n").encode()


def _row(**changed: object) -> bytes:
    return (json.dumps({**ROW, **changed}) + "\n").encode()


def _cut(draw: random.Random) -> bytes:
    return GOOD[: draw.randint(1, len(GOOD) - 3)] + b"\n"


def _flipped(draw: random.Random) -> bytes:
    at = draw.randrange(len(GOOD) - 1)
    return GOOD[:at] + bytes([draw.randint(0x80, 0xFF)]) + GOOD[at + 1 :]


def _nested(draw: random.Random) -> bytes:
    depth = draw.randint(1_000, 50_000)
    return b'{"prompt": ' + b"[" * depth + b"]" * depth + b', "completion": "b"}\n'


LINES: dict[str, Callable[[random.Random], bytes]] = {
    "cut off": _cut,
    "no UTF-8": _flipped,
    "nested": _nested,
    "no field": lambda draw: (json.dumps({draw.choice(tuple(ROW)): "a"}) + "\n").encode(),
    "another type": lambda draw: _row(**{draw.choice(tuple(ROW)): draw.choice((None, [], ["a"], {}))}),
    "no number": lambda draw: GOOD[:-2] + b', "x": ' + draw.choice((b"NaN", b"Infinity", b"1e999")) + b"}\n",
    "no object": lambda draw: draw.choice((b"[]", b"null", b"7", b'"a"', b"[1, 2]")) + b"\n",
    "twice": lambda draw: GOOD[:-2] + b', "prompt": "b"}\n',
    "half a pair": lambda draw: GOOD.replace(b"How", b"\\ud8%02x" % draw.randrange(256)),
    "huge": lambda draw: _row(**{draw.choice(tuple(ROW)): "a" * draw.randint(5_000_001, 8_000_000)}),
    "nothing to learn": lambda draw: _row(prompt="a b " * draw.randint(200, 2000)),  # beyond train.max_length
}
FILES: dict[str, bytes] = {"empty": b"", "blank": b"\n" * 50, "a list": b"[]", "zeros": bytes(200)}


def check(n: int, seed: int) -> Outcome:
    """n files, of which most have one bad line among good ones."""
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny(folder)
        for index in range(n):
            draw = random.Random(seed * 1_000_003 + index)
            kind = draw.choice((*LINES, *FILES))
            path, before, after = folder / "rows.jsonl", draw.randrange(6), draw.randrange(1, 6)
            if kind in LINES:
                path.write_bytes(GOOD * before + LINES[kind](draw) + GOOD * after)
            else:
                path.write_bytes(FILES[kind])
            fault = _fault(folder, path, before + 1 if kind in LINES else 0)
            outcome.add(not fault, f"{kind}, turn {index} of seed {seed}: {fault}")
    return outcome


def _fault(folder: Path, path: Path, line: int) -> str:
    """What went wrong, or nothing."""
    recipe = load_recipe(folder / "tiny-bfloat16.yaml", [f"data.train={path}"])
    try:
        check_text(check_data(recipe).text, recipe.recipe)
    except LrftError as error:
        said = str(error)
    except Exception as error:  # what the check is about
        return f"{type(error).__name__}: {str(error)[:200]}"
    else:
        return "accepted"
    if "\n" in said or len(said) > 1000:
        return f"no sentence: {said[:200]}"
    return "" if (f"{path}:{line}" if line else str(path)) in said else f"does not say where: {said[:300]}"
