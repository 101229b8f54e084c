"""Trains recipes one after the other in every process of a launch: PATH OUT KILLED OVERRIDE ... -- PATH OUT KILLED ...

KILLED is the step after which the processes are killed, before they save it; 0 for never. A run that is there is
gone on with. OUT/held-RANK.json says how many bytes each process keeps of the frozen weights, and how often it asked
for one. What restarts put beside the weights is left out.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from itertools import groupby
from pathlib import Path

from lrft.api.training import begin
from lrft.api.training.train import train
from lrft.core.changed import Changed
from lrft.core.frozen import FrozenLinear
from lrft.core.run import Run
from lrft.core.sharded import Sharded
from lrft.recipe.load import load_recipe
from lrft.training.keepers import Saver


def main() -> None:
    assemble, saved, weight = begin.assemble, Saver.after_step, Sharded.weight
    state = {"killed": 0, "asked": 0, "job": None}

    def remembered(*arguments, **named):
        state["job"] = assemble(*arguments, **named)
        return state["job"]

    def until(saver: Saver, run: Run) -> None:
        if run.step == state["killed"]:
            os.kill(os.getpid(), signal.SIGKILL)
        saved(saver, run)

    def counted(layer: Sharded):
        state["asked"] += 1
        return weight(layer)

    begin.assemble, Saver.after_step, Sharded.weight = remembered, until, counted
    for parted, group in groupby(sys.argv[1:], lambda text: text == "--"):
        if parted:
            continue
        path, out, killed, *overrides = group
        state |= {"killed": int(killed), "asked": 0}
        train(load_recipe(path, overrides), Path(out), resume=True)
        model, run = state["job"].adaptation.model, state["job"].run
        layers = [module for module in model.modules() if isinstance(module, FrozenLinear)]
        kept = [
            b for module in layers if not isinstance(module, Changed) for b in module.buffers(recurse=False)
        ]
        found = {
            "sharded": sum(isinstance(module, Sharded) for module in layers),
            "bytes": sum(b.untyped_storage().nbytes() for b in kept),
            "asked": state["asked"],
        }
        Path(out, f"held-{run.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
