"""A base model from its configuration and the headers of its files alone: no weight is read, no tokenizer needed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lrft.core import stop
from lrft.data.hub import offline_if_unreachable
from lrft.files.json import read_object
from lrft.files.model_folder import check_model_folder
from lrft.files.tensors import read_header
from lrft.model import gguf
from lrft.model.causal_lm import CausalLM
from lrft.model.checkpoint import check_layers
from lrft.model.experts import take_apart
from lrft.model.load import DTYPES
from lrft.model.new_rows import NewRows
from lrft.model.opening import opening
from lrft.model.skeleton import Skeleton
from lrft.model.skeleton_families import why_no_skeleton
from lrft.recipe.sections import ModelSection
from lrft.registry.errors import DamagedFile, RecipeError, first_line

BUFFERS = ("e_score_correction_bias", "inv_freq")  # which are no parameters of a model
DRY_RUN = "; `lrft train --dry-run` estimates it"  # what a plan that is not made is told


class Described(NamedTuple):
    """A model as its files describe it.

    Attributes:
        config: of config.json.
        source: where that was found, in words.
        folder: where its files are, or None.
    """

    config: dict[str, Any]
    source: str
    folder: Path | None = None


def build_skeleton(section: ModelSection, trust_remote_code: bool = False) -> tuple[CausalLM, Described]:
    """The model without weights, frozen, and where its description is from. No code that comes with it runs.

    Args:
        trust_remote_code: whether that code is what would be trained, and not the family that the files name.

    Raises:
        RecipeError: there is no description, it is of a family that is not known layer by layer, or its files hold
            other tensors than it says.
    """
    with opening(section.name):
        return _skeleton_of(section, trust_remote_code)


def _skeleton_of(section: ModelSection, trust_remote_code: bool) -> tuple[CausalLM, Described]:
    found = describe(section.name, section.revision)
    why = why_no_skeleton(found.config)
    if not why and trust_remote_code and found.config.get("auto_map"):
        why = "it brings code of its own, and --trust-remote-code lets that decide"
    if why:
        raise UnknownFamily(
            f"{section.name!r} is of a family whose layers `lrft plan` does not know ({why}){DRY_RUN}",
            "model.name",
        )
    check_layers(section.name, found.config["num_hidden_layers"])
    hf = Skeleton(found.config, DTYPES[section.dtype])
    hf.requires_grad_(False)
    if found.folder is not None and section.weights == "pretrained":
        _check_headers(section.name, hf, found.folder)
    if section.experts == "split":
        if not hf.mixed:
            raise RecipeError(f"{section.name!r} has no experts to split; write whole", "model.experts")
        take_apart(hf)
    model = CausalLM(hf)  # type: ignore[arg-type]
    model.softcap = hf.softcap
    if section.add_tokens is not None:
        _give_rows(model, len(section.add_tokens.texts))
    return model, found


def _give_rows(model: CausalLM, count: int) -> None:
    """Let so many rows train, the last of the matrices: how many of them are spare is known to the tokenizer alone."""
    weight, head = model.hf.get_input_embeddings().weight, model.hf.get_output_embeddings()
    rows = torch.empty(count, weight.shape[1], device="meta")
    tied = head is None or head.weight is weight
    model.give_new_rows(NewRows(weight.shape[0] - count, rows, None if tied else rows.clone()))


class UnknownFamily(RecipeError):
    """The layers of a model are not described here."""


def describe(name: str, revision: str | None = None) -> Described:
    """The configuration of `model.name`: of a folder, a GGUF file, the hub's cache, those packaged here, or the hub.

    Raises:
        RecipeError: none of them has it.
    """
    path = gguf.locate(name)
    if path is not None:
        return _of_folder(gguf.described(path), f"the header of {path.name}")._replace(folder=None)
    if Path(name).is_dir():
        return _of_folder(Path(name), f"config.json in {name}")
    if (cached := _cached(name, revision)) is not None:
        return _of_folder(cached, "config.json in the hub's cache")
    if revision is None and (known := _published().get(name)) is not None:
        return Described(known, "the published configuration, packaged with lrft")
    if "/" in name and not offline_if_unreachable():
        from huggingface_hub import hf_hub_download

        try:
            with stop.at_once():
                file = hf_hub_download(name, "config.json", revision=revision)
            return _of_folder(Path(file).parent, "config.json on the hub")
        except Exception as error:  # whatever a client of the hub raises
            why = first_line(error)
            raise RecipeError(
                f"{name!r} has no config.json to be read ({why}); {_REMEDY}", "model.name"
            ) from None
    raise RecipeError(f"{name!r} is no folder, is not cached and is not packaged; {_REMEDY}", "model.name")


def _cached(name: str, revision: str | None) -> Path | None:
    """The folder of the hub's cache with the configuration; the client is imported only for what may be there."""
    from huggingface_hub import constants

    kept = Path(constants.HF_HUB_CACHE, constants.REPO_ID_SEPARATOR.join(("models", *name.split("/"))))
    if "/" not in name or not kept.is_dir():
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


_REMEDY = "give a local folder with config.json, a cached hub id, or one of those that docs/planning.md lists"


@cache
def _published() -> Mapping[str, dict[str, Any]]:
    """Hub id -> configuration, of widely used models."""
    found = {}
    for file in sorted((resources.files("lrft.model") / "published").iterdir(), key=str):
        document = json.loads(file.read_text(encoding="utf-8"))
        found.update(dict.fromkeys(document["names"], document["config"]))
    return found


def published_names() -> list[str]:
    """The hub ids whose configurations are packaged."""
    return sorted(_published())


def _of_folder(folder: Path, source: str) -> Described:
    file = folder / "config.json"
    try:
        check_model_folder(folder)
        config = read_object(file)
    except DamagedFile as error:
        raise RecipeError(
            f"{error.file} could not be read (it {error.problem}); {_REMEDY}", "model.name"
        ) from None
    if config.get("quantization_config") is not None:
        raise RecipeError(
            f"{folder} holds weights that are quantized already; `lrft train --dry-run` checks and counts those",
            "model.name",
        )
    return Described(config, source, folder)


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a folder's safetensors files, from their headers; empty without such files."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        header = read_header(file)
        shapes |= {name: tuple(entry["shape"]) for name, entry in header.items()}
    return shapes


def _check_headers(name: str, hf: Skeleton, folder: Path) -> None:
    """Refuse a description that the headers of the files beside it contradict.

    Raises:
        RecipeError: names the first tensor.
    """
    stored = stored_shapes(folder)
    if not stored:
        return
    whole, missing = not (folder / "model.safetensors.index.json").is_file(), 0
    for tensor, parameter in hf.named_parameters():
        found = stored.get(tensor)
        if found is not None and found != tuple(parameter.shape):
            said = " x ".join(map(str, parameter.shape))
            raise RecipeError(
                f"{name!r} holds {tensor} as {' x '.join(map(str, found))}, where its config.json says {said}; "
                "give a folder whose files belong together",
                "model.name",
            )
        if found is None and hf.mixed and ".mlp." in tensor:
            missing += parameter.numel()
        elif found is None and whole:
            raise RecipeError(
                f"{name!r} does not hold {tensor}, which its config.json asks for; give the whole checkpoint",
                "model.name",
            )
    others = _others(stored, hf)
    if whole and missing != others:
        raise RecipeError(
            f"{name!r} holds {others:,} numbers of experts, where its config.json says {missing:,}; give a folder "
            "whose files belong together",
            "model.name",
        )


def _others(stored: Mapping[str, tuple[int, ...]], hf: Skeleton) -> int:
    """Numbers in tensors of the layers that go by other names: experts that become one tensor when they are loaded."""
    known, layers = dict(hf.named_parameters()).keys(), len(hf.model.layers)
    found = {name: re.match(r"model\.layers\.(\d+)\.", name) for name in stored.keys() - known}
    return sum(
        math.prod(stored[name])
        for name, number in found.items()
        if number and int(number[1]) < layers and not name.endswith(BUFFERS) and hf.mixed
    )
