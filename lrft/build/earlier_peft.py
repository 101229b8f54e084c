"""An adapter as PEFT wrote it, read by the method that says it can."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lrft.build.earlier_experts import of_experts
from lrft.core.adapter import Adapter
from lrft.core.params import Site
from lrft.core.peft import PeftForm
from lrft.files.model_folder import read_adapter_config
from lrft.model.builder import make_adapter
from lrft.model.origin import hub_id
from lrft.model.take_over import KEY, Trained, check_sites
from lrft.registry.axes import ADAPTERS
from lrft.registry.errors import DamagedFile, RecipeError
from lrft.registry.json import Json

PREFIX = "base_model.model."
FILE, CONFIG = "adapter_model.safetensors", "adapter_config.json"
OTHER = "name an earlier one"


def read_peft(
    folder: Path, sites: Mapping[str, Site], wanted: str
) -> tuple[dict[str, Trained], str, str | None]:
    """The adapter at each site, the method, and the base as the file names it: its hub id, or a folder.

    Args:
        sites: those that the new adapter goes on.
        wanted: the new adapter's method, which is preferred among those that read the folder.

    Raises:
        RecipeError: no method reads it, or it is of another model.
    """
    if not (folder / FILE).is_file():
        raise RecipeError(f"{folder} has no {FILE}; save the adapter with safetensors", KEY)
    try:
        keys = read_adapter_config(folder)
        tensors = load_file(folder / FILE, device="cpu")
        parameters = (
            keys.pop("target_parameters", None) or ()
        )  # whose tensors are told apart here, by no method
    except (DamagedFile, SafetensorError) as error:
        raise RecipeError(str(error), KEY) from error
    cls = _reader(folder, keys, wanted)
    form = cls.peft_form()
    assert form is not None and form.read is not None
    endings = {f".{theirs}": ours for ours, theirs in form.names.items()}
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        ending = next((end for end in endings if name.endswith(end) and name.startswith(PREFIX)), None)
        if ending is None:
            raise RecipeError(
                f"{folder} holds {name}, which is no tensor of {cls.name} at a linear layer; merge it with PEFT, and "
                "name the merged model as model.name",
                KEY,
            )
        site = name.removeprefix(PREFIX).removesuffix(ending)
        found.setdefault(site, {})[endings[ending]] = tensor.float()
    of: dict[str, str] = {}
    if parameters:
        found, of = of_experts(found, parameters, sites, lambda name: _settings(form, keys, name)["rank"])
    check_sites(found, sites)
    given = {}
    for name, held in found.items():
        try:
            settings, own = form.taken(_settings(form, keys, of.get(name, name)), name, held)
        except ValueError as error:
            raise RecipeError(f"{folder}: {error}", KEY) from None
        given[name] = _of_tensors(folder, cls, sites[name], settings, own)
    return given, cls.name, _said(keys)


def _settings(form: PeftForm, keys: Mapping[str, Any], name: str) -> dict[str, Any]:
    assert form.read is not None, "asked of methods that read"
    return form.read(keys, name) or {}


def _reader(folder: Path, keys: Mapping[str, Any], wanted: str) -> type[Adapter]:
    """The method that the folder is of: the recipe's own where that reads it, else the plainest that does."""
    methods = [ADAPTERS.get(name) for name in ADAPTERS.names()]
    for cls in sorted(methods, key=lambda cls: (cls.name != wanted, len(cls.__mro__))):
        form = cls.peft_form()
        try:
            if form is not None and form.read is not None and form.read(keys, "") is not None:
                found: type[Adapter] = cls
                return found
        except ValueError as error:
            raise RecipeError(f"{folder}/{CONFIG} {error}", KEY) from None
    kind = keys.get("peft_type")
    raise RecipeError(
        f"{folder} is of type {kind}, which is not read here; train anew, or merge it with PEFT", KEY
    )


def _of_tensors(
    folder: Path, cls: type[Adapter], site: Site, settings: dict[str, Json], held: dict[str, Tensor]
) -> Trained:
    try:
        config = cls.Config.model_validate({"method": cls.name, **settings})
    except ValidationError as error:
        first = error.errors()[0]
        key, why = ".".join(map(str, first["loc"])) or cls.name, first["msg"].lower()
        raise RecipeError(
            f"{folder}/{CONFIG}: its {key} is none that {cls.name} has ({why}); restore it from a copy", KEY
        ) from None
    with torch.device("meta"):  # what it says may be a thousand times what is there
        own = make_adapter(cls, config, site).state_dict()
    for name, tensor in own.items():
        if name not in held or held[name].shape != tensor.shape:
            has = tuple(held[name].shape) if name in held else "nothing"
            raise RecipeError(
                f"{folder} has {has} where {site.name} takes {name} of {tuple(tensor.shape)}; it is of another model, "
                "or its adapter_config.json is",
                KEY,
            )
        if not held[name].isfinite().all():
            raise RecipeError(
                f"{folder} has {name} of {site.name} with numbers that are not finite; {OTHER}", KEY
            )
    part = make_adapter(cls, config, site)
    part.load_state_dict(held)
    return Trained(part)


def _said(keys: Mapping[str, Any]) -> str | None:
    """The base as the file names it: by its hub id, or by the last part of a path."""
    name = keys.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        return None
    is_path = name.startswith(("/", ".", "~"))
    return (None if is_path else hub_id(name)) or Path(name).name
