"""`lrft delta compress` takes the memory of the layer at work, however many there are, and survives a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lrft.api.delta.compress import compress
from lrft.export.delta import TENSORS, Delta, seal, write_delta
from lrft.files.tensors_written import Gathered
from lrft.model.layout import gather
from lrft.training.run_manifest import text_of

WIDTH, FEW, MANY = 512, 2, 26
MEASURED = """
import re, sys
from pathlib import Path
from lrft.api.delta.compress import compress
from lrft.model import heap

def now(what):
    return int(re.search(what + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10

for folder in sys.argv[1:]:
    heap.give_back()
    Path("/proc/self/clear_refs").write_text("5")
    before = now("VmRSS")
    compress(folder, f"{folder}-small", groups=[(8, 2), (3, 4)])
    print(now("VmHWM") - before)
"""


def write_differences(folder: Path, layers: int, tokenizer) -> int:
    """As many layers of blocks, and matrices outside of them; bytes of their file."""
    folder.mkdir()
    gathered, shapes = Gathered(folder / TENSORS), {}
    for number in range(layers):
        for name in (f"model.layers.{number}.mlp.up_proj.weight", f"table_{number}.weight"):
            gather(gathered, name, torch.randn(WIDTH, WIDTH))
            shapes[name] = [WIDTH, WIDTH]
    record: Delta = {
        "base": "base",
        "tuned": "tuned",
        "base_fingerprint": "",
        "dtype": "float32",
        "shapes": shapes,
        "rows": WIDTH,
        "vocabulary": "",
        "changed": len(shapes),
        "relative_change": 0.1,
        "told": [],
    }
    record = write_delta(gathered, record, tokenizer, "{}", {}, ())
    seal(folder, text_of(record))
    return (folder / TENSORS).stat().st_size


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_compressing_takes_no_more_memory_of_more_differences(tiny, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny())
    names, sizes = ("first", "few", "many"), {}
    for name, layers in zip(
        names, (FEW, FEW, MANY), strict=True
    ):  # of the first everything is imported and warm
        sizes[name] = write_differences(tmp_path / name, layers, tokenizer)
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *(str(tmp_path / name) for name in names)],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},  # what is freed goes back, and is not counted
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    _, few, many = map(int, done.stdout.split())
    assert sizes["many"] - sizes["few"] > 48 * 2**20
    assert many - few < 4 * 2**20, f"{many >> 20} MiB of {MANY} layers, {few >> 20} of {FEW}"


KILLED = """
import os, signal, sys
from lrft.api.delta.compress import compress
from lrft.files.tensors_written import Gathered

def struck(self, name, *rest, add=Gathered.add):
    add(self, name, *rest)
    if len(self.tensors) == 17:
        os.kill(os.getpid(), signal.SIGKILL)

Gathered.add = struck
compress(sys.argv[1], sys.argv[2], groups=[(8, 2)])
"""


def test_a_compression_that_was_killed_begins_again_and_leaves_nothing(tiny, tmp_path):
    from transformers import AutoTokenizer

    write_differences(tmp_path / "delta", 4, AutoTokenizer.from_pretrained(tiny()))
    words = [sys.executable, "-c", KILLED, str(tmp_path / "delta"), str(tmp_path / "small")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    [left] = tmp_path.glob(".small.*.tmp")
    assert (left / f"{TENSORS}.parts").stat().st_size > 0 and not (tmp_path / "small").exists()
    for name in ("small", "uncut"):
        compress(tmp_path / "delta", tmp_path / name, groups=[(8, 2)])
    assert {path.name for path in tmp_path.iterdir()} == {"delta", "small", "uncut"}
    assert (tmp_path / "small" / TENSORS).read_bytes() == (tmp_path / "uncut" / TENSORS).read_bytes()
    assert not list((tmp_path / "small").glob("*.parts"))
