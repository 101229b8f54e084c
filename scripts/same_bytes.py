"""Train a few recipes and write down hashes of what they give, to show that a change of code changed no result.

    python scripts/same_bytes.py BEFORE.json                      before the change
    python scripts/same_bytes.py AFTER.json --against BEFORE.json after it; exits 1 where anything differs

Six steps of the quickstart on the small model, and three steps of smoke recipes of different kinds on a random one.
Hashed are the losses, norms and rates of every step, every file of the adapter, the tensors of the last checkpoint, and
the merged weights. The command line is used, so code that was moved is still found; one machine, one number of threads.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import make_tiny_model  # noqa: E402

SMOKE = ["dora", "pissa", "adalora", "relora", "galore", "mola", "nf4", "dpo"]
SMALL = ["data.train.limit=30", "data.eval.limit=4", "train.device=cpu"]
TIMES = ("seconds", "tokens_per_second", "memory", "peak_memory", "time")  # of a line of metrics.jsonl


def main(arguments: list[str] | None = None) -> int:
    """Train, hash, compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--against", type=Path, help="what an earlier call wrote")
    parser.add_argument("--only", nargs="+", default=["quickstart", *SMOKE], help="recipes")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        found = {name: hashes(name, Path(folder)) for name in chosen.only}
    chosen.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if chosen.against is None:
        return 0
    differing = differences(json.loads(chosen.against.read_text(encoding="utf-8")), found)
    print("\n".join(differing) or f"{len(found)} recipes give the same bytes")
    return 1 if differing else 0


def hashes(name: str, folder: Path) -> dict[str, str]:
    """What a recipe's run leaves, by name."""
    run, merged = folder / name, folder / f"{name}-merged"
    if name == "quickstart":
        recipe, overrides = ROOT / "recipes" / "quickstart.yaml", ["train.max_steps=6"]
    else:
        recipe = ROOT / "recipes" / "smoke" / f"{name}.yaml"
        tiny = folder / "tiny"
        if not tiny.exists():
            make_tiny_model.make(tiny, "llama", tied=True, bias=False)
        overrides = [f"model.name={tiny}", *SMALL]
    lrft("train", str(recipe), "--out", str(run), *overrides)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = [{k: v for k, v in line.items() if not k.startswith(TIMES)} for line in lines]
    found = {"metrics": digest(json.dumps(kept, sort_keys=True).encode())}
    files = [*sorted((run / "adapter").rglob("*.safetensors")), *last_checkpoint(run)]
    if lrft("merge", str(run), "--out", str(merged), check=False) == 0:
        files += sorted(merged.rglob("*.safetensors"))
    return found | {path.relative_to(folder).as_posix(): digest(path.read_bytes()) for path in files}


def last_checkpoint(run: Path) -> list[Path]:
    """The tensors of the newest checkpoint."""
    folders = sorted((run / "checkpoints").iterdir())
    return sorted(folders[-1].rglob("*.safetensors")) if folders else []


def differences(before: dict[str, dict[str, str]], after: dict[str, dict[str, str]]) -> list[str]:
    """A line for every hash that is not what it was, or that only one of the two has."""
    found = []
    for recipe in sorted(after):
        old, new = before.get(recipe, {}), after[recipe]
        found += [
            f"{recipe}: {key} differs"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key)
        ]
    return found


def digest(content: bytes) -> str:
    """The first half of its SHA-256."""
    return hashlib.sha256(content).hexdigest()[:32]


def lrft(*arguments: str, check: bool = True) -> int:
    """Run a command of lrft and give its exit code; what fails unasked ends the script with its message."""
    done = subprocess.run(
        [sys.executable, "-m", "lrft", *arguments], cwd=ROOT, text=True, capture_output=True, check=False
    )
    if check and done.returncode:
        sys.exit(f"lrft {' '.join(arguments)}: exit {done.returncode}\n{done.stderr}")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
