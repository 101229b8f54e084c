"""The folder of a run that was made and never trained: a checkpoint of step 0, and the records of every run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lrft.api.combining.origin import Origin
from lrft.build.adaptation import Adaptation
from lrft.build.text import Text
from lrft.data.pack import ORDER
from lrft.files.write import make_folder
from lrft.model.finite_file import finite_file
from lrft.recipe.resolved import decisive_hash, recipe_hash, resolved
from lrft.recipe.schema import Recipe
from lrft.registry.json import Json
from lrft.training.checkpoint import Identity
from lrft.training.checkpoint_folder import write_folder
from lrft.training.folder import PLAN, RECIPE, RESULT, RUN, RunFolder
from lrft.training.opened import ADAPTER, FORMAT, OPTIMIZER, STATE
from lrft.training.relied import own_recipe
from lrft.training.trained_on import KEY, TrainedOn
from lrft.training.versions import environment, versions_of_numbers


@dataclass(frozen=True)
class Untrained:
    """Such a run.

    Attributes:
        place: its folder.
        tensors: of its adapter; `plan` is plan.json.
        began: what run.json and the checkpoint say of how it began.
        now: what its rows and its base are.
    """

    place: Path
    recipe: Recipe
    tensors: Mapping[str, Tensor]
    plan: Mapping[str, Json]
    began: Mapping[str, Json]
    now: TrainedOn

    def write_checkpoint(self, fingerprint: str, device: torch.device) -> None:
        """Write the checkpoint of step 0.

        Args:
            fingerprint: of the base.
            device: what computes.
        """
        relied: dict[str, Json] = {
            "plan": self.plan,
            "run": self.began,
            "decisive": decisive_hash(self.recipe),
        }
        known = Identity(
            recipe_hash(self.recipe), fingerprint, relied, self.now.sums(), versions_of_numbers(device)
        )
        state = {"step": 0, "total_steps": 0, "optimizer": {}, "schedule": {}, "callbacks": {}}
        names = sorted(self.tensors)
        files = {
            ADAPTER: finite_file(self.tensors, "give smaller weights, or other adapters"),
            OPTIMIZER: finite_file({}, ""),
            STATE: json.dumps({**state, "parameters": names}, indent=1, sort_keys=True).encode(),
        }
        checkpoints = self.place / "checkpoints"
        make_folder(checkpoints)
        write_folder(checkpoints / "step-0", files, {"format": FORMAT, "step": 0, **known.record()})

    def write_record(self, origin: Origin, card: Mapping[str, Json], trust_remote_code: bool) -> None:
        """Write run.json, plan.json, result.json, and last recipe.yaml, since a folder with one counts as a run."""
        made: dict[str, object] = {
            "recipe_name": card["name"],
            "recipe_hash": recipe_hash(self.recipe),
            "origins": {},
            "trainable": card["trainable"],
            "seed": self.recipe.train.seed,
            "trust_remote_code": trust_remote_code,
            origin.key: dict(origin.record),
            KEY: self.now.record(),
            **self.began,
            **environment(),
        }
        result: dict[str, Json] = {**card, "loss": None, "seconds": 0.0, "peak_memory_bytes": 0}
        run = RunFolder(self.place)
        run.write_known({PLAN: self.plan, RUN: made, RESULT: result, RECIPE: resolved(self.recipe)})
        own_recipe(self.place)  # refuses a section that goes with a parent's adapter alone


def how_it_began(adaptation: Adaptation, text: Text) -> dict[str, Json]:
    """What run.json and the checkpoint say of a run of no steps."""
    return {
        "base_fingerprint": adaptation.model.fingerprint,
        "data": dict(text.fingerprints),
        "date": text.renderer.today.isoformat(),
        "total_steps": 0,
        "packing": False,
        "packing_order": ORDER,
        "joined": False,
        "processes": 1,
    }
