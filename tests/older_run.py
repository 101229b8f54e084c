"""A run as an older lrft left it: nothing keeps the sums of its records, so that a test may write others."""

from __future__ import annotations

import json
from pathlib import Path

LATER = ("plan", "run", "decisive", "sha256")  # of a checkpoint's manifest


def as_older(run: Path) -> Path:
    """Take the sums out of a run folder; returns it."""
    for folder in (run, *(run / name for name in ("adapter", "last", "best"))):
        (folder / "manifest.json").unlink(missing_ok=True)
    for path in (*run.glob("eval/*.json"), *run.glob("inspect/*.json")):
        record = json.loads(path.read_text())
        kept = {key: value for key, value in record.items() if key not in ("sha256", "samples_sha256")}
        path.write_text(json.dumps(kept))
    for path in run.glob("checkpoints/step-*/manifest.json"):
        manifest = {key: value for key, value in json.loads(path.read_text()).items() if key not in LATER}
        path.write_text(json.dumps({**manifest, "format": 1}, indent=1))
    return run
