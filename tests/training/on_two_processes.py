"""Trains recipes one after the other in every process of a launch: PATH OUT OVERRIDE ... -- PATH OUT OVERRIDE ..."""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path

from lrft.api.training.train import train
from lrft.recipe.load import load_recipe
from lrft.registry.errors import LrftError

for parted, group in groupby(sys.argv[1:], lambda text: text == "--"):
    if not parted:
        path, out, *overrides = group
        try:
            train(load_recipe(path, overrides), Path(out), resume=False)
        except LrftError as error:
            print(f"{path}: {error}", file=sys.stderr)
