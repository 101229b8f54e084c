"""Trains recipes one after the other in every process of a launch: PATH OUT OVERRIDE ... -- PATH OUT OVERRIDE ..."""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path

from lrft.core.errors import LrftError
from lrft.jobs.train import train_recipe
from lrft.recipe.load import load_recipe

for parted, group in groupby(sys.argv[1:], lambda text: text == "--"):
    if not parted:
        path, out, *overrides = group
        try:
            train_recipe(load_recipe(path, overrides), Path(out), resume=False)
        except LrftError as error:
            print(f"{path}: {error}", file=sys.stderr)
