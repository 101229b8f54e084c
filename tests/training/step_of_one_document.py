"""Takes one step of a recipe in a process of its own and prints what it held: RECIPE FOLDER OVERRIDE ...

One line of JSON: `tokens` of the step, `loss`, and `loaded` and `peak`, the bytes of resident memory before the step
and the most that were held during it.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from lrft.build.adapt import adapt
from lrft.build.dataset import read_text
from lrft.build.job import assemble
from lrft.recipe.load import load_recipe
from lrft.recipe.resolved import recipe_hash
from lrft.training.device import make_accelerator
from lrft.training.folder import RunFolder
from lrft.training.step import step_loss


def resident(field: str) -> int:
    """VmRSS, what this process holds, or VmHWM, the most it has held."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found.group(1))


recipe = load_recipe(sys.argv[1], sys.argv[3:]).recipe
text, folder = read_text(recipe), RunFolder(Path(sys.argv[2]))
accelerator = make_accelerator("cpu", recipe.model.dtype)
job = assemble(recipe, folder, text, adapt(recipe, text=text), accelerator, recipe_hash(recipe))
job.run.model.train()
batches = next(iter(job.steps()))
Path("/proc/self/clear_refs").write_text("5")  # what loading held for a while is not the step's
loaded = resident("VmRSS")
loss = float(step_loss(job.run, batches, job.objective))
job.run.optimizer.step()
print(json.dumps({"tokens": batches.tokens, "loss": loss, "loaded": loaded, "peak": resident("VmHWM")}))
