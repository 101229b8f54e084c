"""A folder that PEFT wrote, under PEFT's own keys: its configuration, and the factors of every layer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lrft.core.adapter import Factors
from lrft.files.model_folder import read_adapter_config
from lrft.registry.axes import INITS
from lrft.registry.errors import UsageError
from lrft.registry.peft_pattern import value_at
from lrft.training.folder import RUN

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
KEY = re.compile(r"^(.*)\.(lora_(?:embedding_)?[ABE]|lora_magnitude_vector)(?:\.weight)?$")
# Settings of PEFT's that make the change another function of the tensors than those that are read here.
OTHER_FORMULAS = (
    *("use_qalora", "use_bdlora", "kasa_config", "monteclora_config", "arrow_config"),
    *("alora_invocation_tokens", "target_parameters", "layer_replication"),
)
KEEPS_THE_BASE = (None, True, False, "orthogonal")  # besides those of ours that take nothing off it


@dataclass
class Pair:
    """The tensors of one layer, as PEFT names them."""

    A: Tensor | None = None
    B: Tensor | None = None
    E: Tensor | None = None
    magnitude: Tensor | None = None

    @property
    def whole(self) -> bool:
        """Whether there are two matrices."""
        return self.A is not None and self.B is not None and self.A.ndim == self.B.ndim == 2


@dataclass(frozen=True)
class PeftFolder:
    """What a folder holds.

    Attributes:
        config: adapter_config.json.
        pairs: layer -> its tensors.
        left_out: what else is there -> why it is no change of a linear map.
    """

    path: Path
    config: Mapping[str, Any]
    pairs: Mapping[str, Pair]
    left_out: dict[str, str]

    @property
    def method(self) -> str:
        """PEFT's name of it, with the settings that change its formula."""
        flags = [key for key in ("use_dora", "use_rslora") if self.config.get(key)]
        return " ".join([str(self.config["peft_type"]), *flags])

    def factors(self, site: str) -> Factors:
        """A (r, in) and B (out, r) in float32, PEFT's scaling in B, a diagonal E between them in A.

        Raises:
            UsageError: they do not fit one another.
        """
        pair, config = self.pairs[site], self.config
        assert pair.A is not None and pair.B is not None, "pairs are whole"
        A, B = pair.A.float(), pair.B.float()
        rank = A.shape[0]
        if rank != B.shape[1]:
            shapes = f"{tuple(B.shape)} and {tuple(A.shape)}"
            raise UsageError(f"{self.path}: the factors of {site} are {shapes}, which do not fit")
        alpha = float(value_at(config.get("alpha_pattern"), site, config.get("lora_alpha", 8)))
        if pair.E is not None:
            return A * pair.E.float().view(-1, 1), B * ((alpha if alpha > 0 else rank) / (rank + 1e-5))
        return A, B * (alpha / (rank**0.5 if config.get("use_rslora") else rank))


def is_peft(path: Path | str) -> bool:
    """Whether it is a folder that PEFT, or `lrft export`, wrote; a combination has such files too, and is a run."""
    return (Path(path) / CONFIG).is_file() and not (Path(path) / RUN).is_file()


def read_peft(path: Path) -> PeftFolder:
    """The adapter of a folder.

    Raises:
        UsageError: another method, or a setting of it that is not read here.
        DamagedFile: a file is damaged.
    """
    config = read_adapter_config(path)
    _check(path, config)
    pairs, left_out = _pairs(_tensors(path / TENSORS))
    if not pairs:
        raise UsageError(f"{path / TENSORS}: holds no pair of factors that could be looked at")
    return PeftFolder(path, config, pairs, left_out)


def _check(folder: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind not in ("LORA", "ADALORA"):
        raise UsageError(
            f"{folder / CONFIG}: peft_type {kind} is not read here, only LORA and ADALORA; inspect the run itself"
        )
    for key in OTHER_FORMULAS:
        if config.get(key):
            raise UsageError(f"{folder / CONFIG}: {key} changes what the tensors mean, and is not read here")
    start = config.get("init_lora_weights")
    if kind == "LORA" and not _keeps_the_base(start):
        raise UsageError(
            f"{folder / CONFIG}: init_lora_weights {start} took a part off the base, so that these tensors are no "
            "change of it; save with path_initial_model_for_weight_conversion"
        )


def _keeps_the_base(start: object) -> bool:
    """Whether an initialisation left the base as it was; one that is not known did not."""
    if start in KEEPS_THE_BASE:
        return True
    name = str(start).partition("_niter_")[0].lower()
    return name in INITS.names() and not INITS.get(name).residual


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); PEFT's safetensors are needed") from None


def _pairs(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Pair], dict[str, str]]:
    """Layer -> its tensors, and what else is there."""
    pairs: dict[str, Pair] = {}
    left_out: dict[str, str] = {}
    for key, tensor in tensors.items():
        found = KEY.match(key)
        if found is None:
            left_out[key.removeprefix(PREFIX)] = "it is a whole tensor, and no factor of a change"
            continue
        pair = pairs.setdefault(found[1].removeprefix(PREFIX), Pair())
        setattr(pair, "magnitude" if "magnitude" in found[2] else found[2][-1], tensor)
    for site in [site for site, pair in pairs.items() if not pair.whole]:
        left_out[site] = "its tensors are no two matrices"
        del pairs[site]
    return pairs, left_out
