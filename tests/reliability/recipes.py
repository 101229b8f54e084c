"""R8: recipes with values that are missing, of the wrong type, out of range, misspelt, nothing, a list, or huge."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import yaml

from lrft.recipe.fields import known_keys
from lrft.recipe.load import load_recipe
from lrft.registry.errors import RecipeError
from tests.recipe.valid_recipe import VALID
from tests.reliability.outcome import Outcome

HUGE = ("1e299", "-1e299", str(10**31), "1e-320", "-0.0", str(10**40), ".inf", "-.inf", ".nan")
OTHER = (
    "null",
    "[]",
    "[1, [2]]",
    "{a: 1}",
    "''",
    "x",
    "true",
    "-1",
    "0",
    "0.5",
    "~",
    "*a",
    "!!python/object:os.system x",
)


def check(n: int, seed: int) -> Outcome:
    """n overrides of known keys, misspelt ones and lines of the file; a recipe or a list of sentences comes back."""
    outcome, draw = Outcome(), random.Random(seed)
    keys = [".".join(keys) for keys in known_keys(yaml.safe_load(VALID))]
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "recipe.yaml"
        (Path(name) / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
        for index in range(n):
            text, overrides = VALID, list[str]()
            kind = ("huge", "other", "typo", "missing", "line")[index % 5]
            key = draw.choice(keys)
            if kind in ("huge", "other"):
                overrides = [f"{key}={draw.choice(HUGE if kind == 'huge' else OTHER)}"]
            elif kind == "typo":
                overrides = [f"{_misspelt(key, draw)}={draw.choice(OTHER)}"]
            elif kind == "missing":
                overrides = [f"~{key}"]
            else:
                text = _changed(VALID, draw)
            path.write_text(text)
            fault = _fault(path, overrides, must_refuse=kind == "huge")
            outcome.add(not fault, f"{kind} {overrides or text!r} of seed {seed}: {fault}")
    return outcome


def _fault(path: Path, overrides: list[str], must_refuse: bool) -> str:
    try:
        load_recipe(path, overrides)
    except RecipeError as error:
        lines = [str(problem) for problem in error.problems]
        wrong = [line for line in lines if "\n" in line or "Traceback" in line or len(line) > 2000]
        return f"not a sentence: {wrong[0][:200]}" if wrong else "" if lines else "refused without a word"
    except Exception as error:  # what the check is about
        return f"{type(error).__name__}: {error}"
    return "accepted" if must_refuse else ""


def _misspelt(key: str, draw: random.Random) -> str:
    place = draw.randrange(len(key))
    return key[:place] + draw.choice("xq_") + key[place + draw.randrange(2) :]


def _changed(text: str, draw: random.Random) -> str:
    lines = text.splitlines()
    place = draw.randrange(len(lines))
    head = lines[place].partition(":")[0]
    lines[place] = (
        f"{head}: {draw.choice(HUGE + OTHER)}" if draw.random() < 0.7 else " " * draw.randrange(5) + head
    )
    return "\n".join(lines)
