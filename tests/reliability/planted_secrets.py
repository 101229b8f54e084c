"""R12: secrets in the environment, in recipes, in URLs and on the command line: in no byte that is said or written."""

from __future__ import annotations

import json
import os
import random
import shutil
import string
import tempfile
from pathlib import Path
from unittest.mock import patch

from tests.reliability.full_disk import call
from tests.reliability.outcome import Outcome, tiny

WHOLE = 10  # of so many turns one trains, scores, merges and reports
KEYS = (
    "model.name",
    "data.train",
    "data.template",
    "model.tokenizer",
    "model.adapter",
    "optimizer.lr",
    "no.such",
)
VARIABLES = ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "OUR_PROXY")
AFTERWARDS = (
    ("eval", "run"),
    ("merge", "run", "--out", "merged"),
    ("export", "run", "--for", "peft", "--out", "exported"),
    ("inspect", "run"),
    ("report", "run", "--out", "report.html"),
    ("env",),
    ("env", "--sbom"),
)


def check(n: int, seed: int) -> Outcome:
    """n turns with secrets of their own, each looked for in all that was printed and in every file."""
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny(folder)
        for index in range(n):
            draw = random.Random(seed * 1_000_003 + index)
            mark = "S3" + "".join(draw.choices(string.ascii_letters + string.digits, k=14))
            place = folder / f"turn-{index}"
            place.mkdir()
            held = _held(mark, draw)
            with patch.dict(os.environ, held):
                fault = (_whole if index % WHOLE == 0 else _refused)(folder, place, held, mark, draw)
            outcome.add(not fault, f"turn {index} of seed {seed}: {fault}")
            shutil.rmtree(place)
    return outcome


def _held(mark: str, draw: random.Random) -> dict[str, str]:
    """What the environment holds; every value has the mark in it."""
    ends = ("", "+/=", "'quoted'", '"quoted"', "é", "%41", "$x")
    values = {name: f"{mark}{draw.choice(ends)}" for name in VARIABLES}
    values["HF_TOKEN"] = f"hf_{mark}{mark}"
    values["OUR_PROXY"] = f"http://somebody:{mark}@proxy.example:3128"
    return values


def _refused(folder: Path, place: Path, held: dict[str, str], mark: str, draw: random.Random) -> str:
    """A secret that is written where it does not belong."""
    secret = draw.choice(
        (
            f"https://somebody:{mark}@host.example/data.jsonl",
            f"https://host.example/data.jsonl?token={mark}&x=1",
            *held.values(),
            *(f"${name}/x.jsonl" for name in held),
        )
    )
    recipe = place / "recipe.yaml"
    shutil.copy(folder / "tiny-bfloat16.yaml", recipe)
    written = place.parent / f"{place.name}.yaml"  # what holds it already is not looked at
    lines = (f"model: {json.dumps(secret)}\n", f"? {json.dumps(secret)}\n: 1\n", secret)
    written.write_text(recipe.read_text() + draw.choice(lines))
    key = draw.choice(KEYS)
    words = draw.choice(
        (
            ("train", "recipe.yaml", f"{key}={secret}", "--out", "new"),
            ("train", "recipe.yaml", f"{key}={secret}", "--dry-run", "--json"),
            ("plan", "recipe.yaml", f"{key}={secret}"),
            ("sweep", "recipe.yaml", f"{key}={secret},{secret}x", "--out", "out"),
            ("recipes", "show", "recipe.yaml", f"{key}={secret}"),
            ("recipes", "validate", str(written)),
            ("train", secret),
            ("eval", secret),
            ("data", "check", str(written)),
        )
    )
    ended = call(place, words)
    written.unlink()
    if ended.raised or ended.code not in (1, 2, 3):
        return f"{words[:2]} with {key} ended in {ended.code} {ended.raised}".replace(mark, "MARK")
    return _found(ended.out + ended.err, place, mark, f"{words[0]} {key} of {secret}")


def _whole(folder: Path, place: Path, held: dict[str, str], mark: str, draw: random.Random) -> str:
    """Secrets in the environment alone, where they belong, and everything that writes."""
    words = ["train", str(folder / "tiny-bfloat16.yaml"), "--out", "run", "train.max_steps=1"]
    words += ["eval={tasks: [loss]}", f"data.eval={folder}/held-out.jsonl", "logging.tensorboard=false"]
    (folder / "held-out.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    said = ""
    for one in (tuple(words), *AFTERWARDS):
        ended = call(place, one)
        if ended.raised or ended.code:
            return f"{one[0]} ended in {ended}".replace(mark, "MARK")
        said += ended.out + ended.err
    return _found(said, place, mark, "the environment")


def _found(said: str, place: Path, mark: str, told: str) -> str:
    """Where the mark is, or nothing."""
    files = [path.name for path in place.rglob("*") if path.is_file() and mark.encode() in path.read_bytes()]
    where = [*(["what was said"] if mark in said else []), *files]
    return f"{told}: in {', '.join(where)}".replace(mark, "MARK") if where else ""
