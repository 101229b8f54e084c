"""The changes in a folder that PEFT wrote: thin products, with or without a gain, and the base they belong to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from lrft.core.notes import say
from lrft.lab.spectra.measure import SiteChange
from lrft.lab.spectra.peft_folder import PeftFolder, read_peft
from lrft.lab.spectra.subject import Subject
from lrft.model.load import DTYPES, load_config, load_model
from lrft.model.sites import is_transposed
from lrft.recipe.sections import ModelSection
from lrft.registry.errors import LrftError, RecipeError, UsageError


def changes_of_peft(path: Path, base: str | None, trust_remote_code: bool = False) -> Subject:
    """What the adapter of a folder changes.

    The base is the one given, or named by the configuration. Where the latter cannot be loaded, what needs it is left
    out, and a line says so.

    Raises:
        UsageError: the folder cannot be read (`read_peft`); or the base is needed and is not there, or is another one.
    """
    folder = read_peft(path)
    name, model = _base(folder, base, trust_remote_code)
    absent = [site for site in folder.pairs if model is not None and _layer(model, site) is None]
    if absent:
        raise UsageError(f"{name} has no layer {absent[0]}, which {path} changes; give the right --base")
    return Subject(
        of=str(path),
        kind="peft",
        step=None,
        method=folder.method,
        base=name if model is not None else None,
        left_out=folder.left_out,
        count=len(folder.pairs),
        changes=_changes(folder, model),
    )


def _base(folder: PeftFolder, given: str | None, trusted: bool) -> tuple[str | None, nn.Module | None]:
    name = given or folder.config.get("base_model_name_or_path")
    reason = "the configuration names no base"
    if name:
        try:
            return name, _load(name, None if given else folder.config.get("revision"), trusted)
        except LrftError as error:
            if given:
                raise UsageError(f"--base: {error}") from None
            reason = error.problems[0].message if isinstance(error, RecipeError) else str(error)
    if any(pair.magnitude is not None for pair in folder.pairs.values()):
        raise UsageError(f"{folder.path}: its change depends on the base's weights ({reason}); give --base")
    say(
        f"{folder.path}: no angles, intruders or relative norms without the base's weights ({reason}); give --base"
    )
    return name, None


def _load(name: str, revision: str | None, trusted: bool) -> nn.Module:
    """The base in the precision of its files, so that nothing is rounded and nothing is held twice as wide."""
    section = ModelSection(name=name, revision=revision, dtype="float32", attention="eager")
    kept = getattr(load_config(section, trusted), "dtype", None)
    stored = next((key for key, dtype in DTYPES.items() if dtype == kept), "float32")
    return load_model(section.model_copy(update={"dtype": stored}), trust_remote_code=trusted).hf


def _layer(model: nn.Module, site: str) -> nn.Module | None:
    try:
        layer = model.get_submodule(site)
    except AttributeError:
        return None
    weight = getattr(layer, "weight", None)
    return layer if isinstance(weight, Tensor) and weight.ndim == 2 else None


def _changes(folder: PeftFolder, model: nn.Module | None) -> Iterator[SiteChange]:
    for site, pair in folder.pairs.items():
        A, B = folder.factors(site)
        shape = B.shape[0], A.shape[1]
        layer = None if model is None else _layer(model, site)
        before = None if layer is None else partial(_weight, layer)
        if layer is not None and _shape(layer) != shape:
            told = f"{site} is {shape}, and {_shape(layer)} in the base"
            raise UsageError(f"{folder.path}: {told}; give the right --base")
        if pair.magnitude is None:
            yield SiteChange(site, shape, A.shape[0], (A, B), partial(torch.matmul, B, A), before)
            continue
        assert before is not None, "a gain was refused without its base"
        gain = pair.magnitude.float().flatten()
        if len(gain) != shape[0]:
            raise UsageError(f"{folder.path}: {site} has {len(gain)} magnitudes for {shape[0]} outputs")
        yield SiteChange(site, shape, A.shape[0], None, partial(_with_gain, A, B, gain, before), before)


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
