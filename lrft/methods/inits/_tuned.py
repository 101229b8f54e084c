"""The weights of a model that was trained in full, read one by one from its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from lrft.core.params import Site
from lrft.files.json import read_object
from lrft.files.model_folder import INDEX, MOST, check_model_folder
from lrft.files.records import Index
from lrft.files.tensors import read_header
from lrft.registry.errors import DamagedFile, RecipeError

WHOLE = "model.safetensors"
KEY = "init.tuned"


class Tuned:
    """A folder of safetensors as transformers and `lrft merge` write it."""

    def __init__(self, folder: str, sites: Mapping[str, Site], setting: str = KEY) -> None:
        """Look for the weights of the sites.

        Raises:
            RecipeError: at `setting`: there is no such folder, or one of another model.
        """
        self.setting = setting
        self.folder = Path(folder).expanduser()
        try:
            self.files = self._files()
            keys = [f"{name}.weight" for name in sites]
            wanted = sorted({self.files[key] for key in keys if key in self.files})
            held = {key: entry for file in wanted for key, entry in read_header(self.folder / file).items()}
        except DamagedFile as error:
            raise RecipeError(str(error), self.setting) from error
        for key, site in zip(keys, sites.values(), strict=True):
            if key not in held:
                raise RecipeError(f"{folder} holds no {key}; name a tuned model of model.name", self.setting)
            shape, own = tuple(held[key]["shape"]), (site.out_features, site.in_features)
            if shape not in (own, own[::-1]):
                message = (
                    f"{folder} holds {key} of shape {shape}, and the model's is {own}; name a tuned model of "
                )
                raise RecipeError(f"{message}model.name", self.setting)

    def distance(self, name: str, weight: Tensor) -> Tensor:
        """How far every entry of a site was moved from `weight`, (out, in) float32 on the CPU.

        Some models store layers as (in, out). Of a square one the way that is nearer to `weight` is its own.
        """
        from safetensors import safe_open

        key = f"{name}.weight"
        with safe_open(self.folder / self.files[key], framework="pt") as file:
            tuned: Tensor = file.get_tensor(key).float()
        own = weight.float().cpu()
        ways = [(way - own).abs() for way in (tuned, tuned.mT) if way.shape == own.shape]
        return min(ways, key=lambda way: float(way.sum()))

    def _files(self) -> dict[str, str]:
        """Name of every tensor -> the file that holds it."""
        if not self.folder.is_dir():
            raise RecipeError(f"{self.folder} is no folder; name the one that lrft merge wrote", self.setting)
        check_model_folder(self.folder)
        if (self.folder / INDEX).is_file():
            index = read_object(self.folder / INDEX, Index, MOST[".json"], self.folder)
            where: dict[str, str] = index["weight_map"]
            return where
        if not (self.folder / WHOLE).is_file():
            raise RecipeError(
                f"{self.folder} holds no {WHOLE}; name the folder that lrft merge wrote", self.setting
            )
        return dict.fromkeys(read_header(self.folder / WHOLE), WHOLE)
