"""Loading a model but for the weights of its linear layers, which stay in their files until they are asked for.

transformers loads as ever: it names, converts and reports every tensor. In place of the matrices it is given promises,
`Stored`, which become parameters without storage that remember their file. What it does to a promise other than
calling it by another name leaves no promise, and the model is then read whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from lrft.core import stop
from lrft.model.checkpoint import LoadingReport, check_loaded
from lrft.model.experts import split
from lrft.model.files import Where
from lrft.model.hf import HF, ModelConfig
from lrft.model.packed import find_packed
from lrft.model.promised import Joined, Joining
from lrft.model.sites import is_transposed
from lrft.model.stored import NotStreamed, Stored, read_parameter, stored_at

if TYPE_CHECKING:
    from transformers import GenerationConfig

# Of a configuration: its weights are in files of other names, or in more than the usual ones.
OTHER_FILES = ("transformers_weights", "extra_files")
STORED_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def load_promised(
    skeleton: HF, name: str, source: str, options: Where, dtype: torch.dtype, apart: bool = False
) -> HF:
    """The model with everything but the weights of its linear layers, which are promises (`stored_at`).

    Args:
        skeleton: the architecture without weights.
        name: of the recipe, for messages.
        source, options: where transformers finds the files.
        apart: take experts apart, whose matrices then wait one by one.

    Raises:
        NotStreamed: a tensor is not stored as the architecture has it.
        RecipeError: tensors are missing, unexpected or of another shape.
    """
    files = _shards(source, options, skeleton.config)
    hf, report = _load(skeleton, files, dtype, apart=apart)
    places = [at for p in hf.parameters() if (at := stored_at(p)) is not None]
    kept = {at.key for at in places if not isinstance(at, Joined)}
    if any(p.is_meta and stored_at(p) is None for p in hf.parameters()):
        # Tensors that become one, as those of experts: transformers makes it, of values, when it is given some.
        hf, report = _load(skeleton, files, dtype, kept)
    check_loaded(name, report)
    if apart:
        split(hf)
    _check_promises(hf)
    hf.generation_config = _generation(source, options)
    hf.name_or_path = hf.config.name_or_path = source
    return hf


def _load(
    skeleton: HF,
    files: list[str],
    dtype: torch.dtype,
    promised: set[str] | None = None,
    apart: bool = False,
) -> tuple[HF, LoadingReport]:
    """The model and transformers' report, with promises for all matrices or those `promised` by key.

    Args:
        apart: promise experts too, in one tensor or in many.
    """
    with ExitStack() as stack:
        vocabulary = skeleton.get_input_embeddings().num_embeddings
        tensors = dict(_tensors(files, vocabulary, promised, stack, (2, 3) if apart else (2,)))
        stack.enter_context(stop.at_once())
        if apart:
            stack.enter_context(Joining())
        loaded = type(skeleton).from_pretrained(  # type: ignore[attr-defined]
            None,
            config=skeleton.config,
            state_dict=tensors,
            dtype=dtype,
            attn_implementation="eager",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported, by name, and refused
        )
    return cast(tuple[HF, LoadingReport], loaded)


def _shards(source: str, options: Where, config: ModelConfig) -> list[str]:
    """The safetensors files that transformers would read, in its order."""
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
    from transformers.utils.hub import cached_file, get_checkpoint_shard_files

    def find(file: str) -> str | None:
        found: str | None = cached_file(source, file, _raise_exceptions_for_missing_entries=False, **options)
        return found

    if find("adapter_config.json") or any(getattr(config, name, None) for name in OTHER_FILES):
        raise NotStreamed("more than its own safetensors files belongs to it")
    if single := find(SAFE_WEIGHTS_NAME):
        return [single]
    index = find(SAFE_WEIGHTS_INDEX_NAME)
    if index is None:
        raise NotStreamed("it has no safetensors files of the usual names")
    return list(get_checkpoint_shard_files(source, index, **options)[0])


def _tensors(
    files: list[str],
    vocabulary: int,
    promised: set[str] | None,
    stack: ExitStack,
    dimensions: tuple[int, ...],
) -> Iterator[tuple[str, object]]:
    """Every tensor of the files: matrices as promises; the others as transformers reads them, embeddings and heads too.

    Of those, which have a row for every word, transformers may compare the values.
    """
    from safetensors import safe_open

    opened = {file: stack.enter_context(safe_open(file, framework="pt")) for file in files}
    place = {key: file for file in files for key in list(opened[file].keys())}
    packed = find_packed(place)
    yield from packed.items()
    beside = {key for weight in packed.values() for key in weight.parts}
    for key, file in place.items():
        stop.poll()
        if key in beside:
            continue
        part = opened[file].get_slice(key)
        shape, dtype = tuple(part.get_shape()), STORED_DTYPES.get(part.get_dtype())
        waits = len(shape) in dimensions and vocabulary not in shape and (promised is None or key in promised)
        yield key, Stored(file, key, shape, dtype) if waits and dtype is not None else part


def _check_promises(hf: HF) -> None:
    """Read every promise but those of plain linear layers, which alone are replaced one after another.

    Raises:
        NotStreamed: a parameter without values is no promise as it was given, or stands in two places.
    """
    everywhere = [name for name, p in hf.named_parameters(remove_duplicate=False) if p.is_meta]
    waiting = {name: p for name, p in hf.named_parameters() if p.is_meta}
    tied = getattr(hf, "all_tied_weights_keys", {})
    for name, parameter in waiting.items():
        if stored_at(parameter) is None or parameter._version:
            raise NotStreamed(f"{name} is made of other tensors of its files")
    if len(everywhere) > len(waiting) or waiting.keys() & {*tied.keys(), *tied.values()}:
        raise NotStreamed("layers share a weight")
    for name in waiting:
        parent, _, leaf = name.rpartition(".")
        layer = hf.get_submodule(parent)
        if leaf != "weight" or not (_is_plain(layer) or is_transposed(layer)):
            read_parameter(hf, name)


def _is_plain(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) and type(layer).forward is nn.Linear.forward


def _generation(source: str, options: Where) -> GenerationConfig:
    """What transformers gives a model that it loads by name: the generation settings of its files."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(source, **options)
    except OSError:  # older models have them in config.json
        return GenerationConfig.from_pretrained(
            source, config_file_name="config.json", _from_model_config=True, **options
        )
