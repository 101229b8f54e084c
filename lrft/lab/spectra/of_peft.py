"""The changes in a folder that PEFT wrote: thin products, with or without a gain, under PEFT's own keys."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lrft.core.adapter import Factors
from lrft.core.notes import say
from lrft.lab.spectra.measure import SiteChange
from lrft.lab.spectra.subject import Subject
from lrft.model.load import DTYPES, load_config, load_model
from lrft.model.sites import is_transposed
from lrft.recipe.sections import ModelSection
from lrft.registry.axes import INITS
from lrft.registry.errors import LrftError, RecipeError, UsageError

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
KEY = re.compile(r"^(.*)\.(lora_(?:embedding_)?[ABE]|lora_magnitude_vector)(?:\.weight)?$")
# Settings of PEFT's that make the change another function of the tensors than those that are read here.
OTHER_FORMULAS = (
    *("use_qalora", "use_bdlora", "kasa_config", "monteclora_config", "arrow_config"),
    *("alora_invocation_tokens", "target_parameters", "layer_replication"),
)
KEEPS_THE_BASE = (None, True, False, "orthogonal")  # besides those of ours that take nothing off it


def changes_of_peft(folder: Path, base: str | None) -> Subject:
    """What the adapter of a folder changes.

    The base is the one given, or named by the configuration. Where the latter cannot be loaded, what needs it is left
    out, and a line says so.

    Raises:
        UsageError: another method, or a setting of it that is not read here; damaged files; or the base is needed and
            is not there.
    """
    config = _read(folder / CONFIG)
    _check(folder, config)
    tensors = _tensors(folder / TENSORS)
    pairs, left_out = _pairs(tensors)
    if not pairs:
        raise UsageError(f"{folder / TENSORS}: holds no pair of factors that could be looked at")
    needed = any(pair.magnitude is not None for pair in pairs.values())
    name, model = _base(folder, config, base, needed)
    absent = [site for site in pairs if model is not None and _layer(model, site) is None]
    if absent:
        raise UsageError(f"{name} has no layer {absent[0]}, which {folder} changes; give the right --base")
    return Subject(
        of=str(folder),
        kind="peft",
        step=None,
        method=_method(config),
        base=name if model is not None else None,
        left_out=left_out,
        count=len(pairs),
        changes=_changes(folder, pairs, config, model),
    )


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


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({error})") from None
    if not isinstance(found, dict):
        raise UsageError(f"{path}: holds no configuration of PEFT's")
    return found


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


def _method(config: Mapping[str, Any]) -> str:
    flags = [key for key in ("use_dora", "use_rslora") if config.get(key)]
    return " ".join([str(config["peft_type"]), *flags])


def _base(
    folder: Path, config: Mapping[str, Any], given: str | None, needed: bool
) -> tuple[str | None, nn.Module | None]:
    name = given or config.get("base_model_name_or_path")
    reason = "the configuration names no base"
    if name:
        try:
            return name, _load(name, None if given else config.get("revision"))
        except LrftError as error:
            if given:
                raise UsageError(f"--base: {error}") from None
            reason = error.problems[0].message if isinstance(error, RecipeError) else str(error)
    if needed:
        raise UsageError(f"{folder}: its change depends on the base's weights ({reason}); give --base")
    say(
        f"{folder}: without the base's weights there are no angles, intruders or relative norms ({reason}); give --base"
    )
    return name, None


def _load(name: str, revision: str | None) -> nn.Module:
    """The base in the precision of its files, so that nothing is rounded and nothing is held twice as wide."""
    section = ModelSection(name=name, revision=revision, dtype="float32", attention="eager")
    kept = getattr(load_config(section), "dtype", None)
    stored = next((key for key, dtype in DTYPES.items() if dtype == kept), "float32")
    return load_model(section.model_copy(update={"dtype": stored})).hf


def _layer(model: nn.Module, site: str) -> nn.Module | None:
    try:
        layer = model.get_submodule(site)
    except AttributeError:
        return None
    weight = getattr(layer, "weight", None)
    return layer if isinstance(weight, Tensor) and weight.ndim == 2 else None


def _changes(
    folder: Path, pairs: Mapping[str, Pair], config: Mapping[str, Any], model: nn.Module | None
) -> Iterator[SiteChange]:
    for site, pair in pairs.items():
        A, B = _factors(folder, site, pair, config)
        shape = B.shape[0], A.shape[1]
        layer = None if model is None else _layer(model, site)
        before = None if layer is None else partial(_weight, layer)
        if layer is not None and _shape(layer) != shape:
            raise UsageError(
                f"{folder}: {site} is {shape} there and {_shape(layer)} in the base; give the right --base"
            )
        if pair.magnitude is None:
            yield SiteChange(site, shape, A.shape[0], (A, B), partial(torch.matmul, B, A), before)
            continue
        assert before is not None, "a gain was refused without its base"
        gain = pair.magnitude.float().flatten()
        if len(gain) != shape[0]:
            raise UsageError(f"{folder}: {site} has {len(gain)} magnitudes for {shape[0]} outputs")
        yield SiteChange(site, shape, A.shape[0], None, partial(_with_gain, A, B, gain, before), before)


def _factors(folder: Path, site: str, pair: Pair, config: Mapping[str, Any]) -> Factors:
    """A (r, in) and B (out, r) in float32, PEFT's scaling in B, a diagonal E between them in A."""
    assert pair.A is not None and pair.B is not None
    A, B = pair.A.float(), pair.B.float()
    rank = A.shape[0]
    if rank != B.shape[1]:
        raise UsageError(
            f"{folder}: the factors of {site} are {tuple(B.shape)} and {tuple(A.shape)}, which do not fit"
        )
    alpha = float(_at(config.get("alpha_pattern"), site, config.get("lora_alpha", 8)))
    if pair.E is not None:
        return A * pair.E.float().view(-1, 1), B * ((alpha if alpha > 0 else rank) / (rank + 1e-5))
    return A, B * (alpha / (rank**0.5 if config.get("use_rslora") else rank))


def _at(patterns: Mapping[str, float] | None, site: str, default: float) -> float:
    """The value of the first pattern that the layer's path ends in, as PEFT matches them."""
    found = (value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", site))
    return next(found, default)


def _shape(layer: nn.Module) -> tuple[int, int]:
    out, into = layer.get_parameter("weight").shape
    return (into, out) if _is_turned(layer) else (out, into)


def _weight(layer: nn.Module) -> Tensor:
    """(out, in) float32; the out of an embedding is its width."""
    weight = layer.get_parameter("weight").detach().float()
    return weight.mT if _is_turned(layer) else weight


def _is_turned(layer: nn.Module) -> bool:
    return is_transposed(layer) or isinstance(layer, nn.Embedding)


def _with_gain(A: Tensor, B: Tensor, gain: Tensor, before: Callable[[], Tensor]) -> Tensor:
    """The change of a weight split into magnitude and direction: g / |W + B A| (W + B A) - W, norms of rows."""
    weight = before()
    direction = weight + B @ A
    norms: Tensor = direction.norm(dim=1, keepdim=True)
    return gain[:, None] / norms * direction - weight
