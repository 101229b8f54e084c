"""Write six small tasks for `lrft generate-adapter`: of each order of the quickstart data one field is asked.

`python scripts/make_small_tasks.py FOLDER MODEL` writes FOLDER/NAME.yaml, a recipe of a LoRA of which eight checkpoints
stay, and the rows beside it. All recipes begin with the same factors: only their data differ.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lrft.files.write import make_folder, write_file  # noqa: E402

DATA = ROOT / "recipes" / "data" / "quickstart"
FIELDS = ("name", "item", "count", "color", "city", "day")
RECIPE = """\
model: {{name: {model}, dtype: float32}}
adapter: {{method: lora, rank: 4, alpha: 8, targets: [q_proj, v_proj]}}
optimizer: {{method: adamw, lr: 0.02}}
schedule: constant
data:
  train: {{source: {field}.jsonl}}
  eval: {{source: {field}-test.jsonl}}
  format: {{method: prompt_completion, render: chat}}
train: {{max_steps: 60, batch_size: 8, max_length: 160, save_every: 5, keep_last: 8, device: cpu}}
eval: {{tasks: [loss]}}
"""


def write_tasks(folder: Path, model: str) -> list[Path]:
    """The recipes that were written, one a field."""
    make_folder(folder)
    found = []
    for field in FIELDS:
        for split, suffix in (("train", ""), ("test", "-test")):
            rows = map(json.loads, (DATA / f"{split}.jsonl").read_text(encoding="utf-8").splitlines())
            lines = [
                {
                    "prompt": f"{row['prompt']} Which {field}?",
                    "completion": str(json.loads(row["completion"])[field]),
                }
                for row in rows
            ]
            write_file(folder / f"{field}{suffix}.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        found.append(folder / f"{field}.yaml")
        write_file(found[-1], RECIPE.format(model=model, field=field))
    return found


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python scripts/make_small_tasks.py FOLDER MODEL")
    for path in write_tasks(Path(sys.argv[1]), sys.argv[2]):
        print(path)
