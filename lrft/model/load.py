"""Loading the base model and its tokenizer: one way, used by training, evaluation and merging alike."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch

from lrft.core import stop
from lrft.model import asked, attention, head
from lrft.model.backend import first_backend
from lrft.model.causal_lm import CausalLM
from lrft.model.checkpoint import LoadingReport, check_config, check_loaded
from lrft.model.direct import find_direct
from lrft.model.drawn import draw
from lrft.model.experts import split
from lrft.model.files import quiet, resolve
from lrft.model.hf import HF, ModelConfig
from lrft.model.known_sums import Summing
from lrft.model.new_tokens import extend, prove_rows
from lrft.model.opening import opening
from lrft.model.packed import Packed, packed_layers, take_packing
from lrft.model.rope import stretch
from lrft.model.stored import NotStreamed, Unread, answering_zeros, fingerprint
from lrft.model.stream import load_promised
from lrft.model.tokenizer import read_new_tokens
from lrft.recipe.sections import ModelSection
from lrft.registry.errors import RecipeError, first_line

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}


def load_model(
    section: ModelSection,
    *,
    device: torch.device | str = "cpu",
    trust_remote_code: bool = False,
    meta: bool = False,
    seed: int | None = None,
    sums: bool = False,
) -> CausalLM:
    """The dense base model, frozen, in `model.dtype`, attention backend chosen.

    Args:
        section: the recipe's `model` section.
        device: where it will run; decides the default attention backend. Weights are loaded on the CPU.
        meta: build the architecture without weights.
        seed: of the run, `train.seed`, which random weights are drawn from.
        sums: know every value, for `weight_sums` of the model; what its unchanged files gave before is not hashed.

    Raises:
        RecipeError: the model cannot be loaded, or computes its logits in a way lrft does not know.
    """
    quiet()
    attention.register()
    config = load_config(section, trust_remote_code)
    packing, packed = take_packing(config), dict[str, Packed]()
    summing = Summing(section) if sums else None
    with opening(section.name):
        if packing is None or meta or section.weights == "random":
            hf = _build(section, config, trust_remote_code, meta, seed)
        else:
            hf, packed = _unpacked(section, config, trust_remote_code)
    hf.requires_grad_(False)
    hf.eval()
    if section.experts == "split":
        split(hf)
    model = CausalLM(hf)
    model.packing, model.packed = packing, packed
    if not meta:
        head.settle(model)
    model.direct = _direct(hf)
    if not meta:
        model.fingerprint = fingerprint(hf)
        model.weight_sums = None if summing is None else summing.of(hf)
    if (new := read_new_tokens(section, trust_remote_code)) is not None:
        extend(model, new, section.resize)
    if not meta:
        prove_rows(model)
    first_backend(model, section, torch.device(device))
    return model


def open_model(section: ModelSection, trust_remote_code: bool = False, sums: bool = False) -> CausalLM:
    """The base model with the weights of its linear layers left in their files, for `attach` to read one by one.

    Its head has not been tried (`prove`), nor has an attention backend been chosen. `sums` is as of `load_model`; what
    is hashed is hashed as it is read.

    Raises:
        NotStreamed: it cannot be shown that the model is then the one that `load_model` gives, or it is small.
        RecipeError: its files do not hold it.
    """
    quiet()
    attention.register()
    config = load_config(section, trust_remote_code)
    packing = take_packing(config)
    summing = Summing(section) if sums else None
    try:
        skeleton = _build(section, config, trust_remote_code, meta=True, seed=None)
        if sum(parameter.numel() for parameter in skeleton.parameters()) <= asked.SMALL:
            raise NotStreamed("")  # asked exactly, of a float32 copy
        if skeleton.get_output_embeddings() is None:
            raise NotStreamed("")  # about to be refused
        if not type(skeleton).__module__.startswith("transformers."):
            raise NotStreamed("its code is its own, and may read them in other ways")
        hf = _promised(section, skeleton)
        with answering_zeros(hf):
            direct = find_direct(hf)
    except (NotStreamed, RecipeError):
        raise
    except Exception as error:  # whatever a model's own code raises
        raise NotStreamed(first_line(error)) from None
    model = CausalLM(hf)
    model.direct, model.unread = direct, Unread(hf, summing)
    model.packing, model.packed = packing, packed_layers(hf)
    if (new := read_new_tokens(section, trust_remote_code)) is not None:
        extend(model, new, section.resize)  # proved when the layers have weights
    return model


def prove(model: CausalLM, section: ModelSection, device: torch.device | str) -> None:
    """Find the head of a model that has all its weights, and choose its attention backend.

    Raises:
        RecipeError: it computes its logits in a way lrft does not know, or takes no backend.
    """
    head.settle(model)
    first_backend(model, section, torch.device(device))


def _direct(hf: HF) -> frozenset[str]:
    try:
        return find_direct(hf)
    except Exception as error:  # whatever a model's own code raises
        reason = first_line(error)
        raise RecipeError(
            f"transformers cannot run {type(hf).__name__} in training mode ({type(error).__name__}: {reason}); "
            "docs/models.md lists families that train",
            "model.name",
        ) from None


@stop.at_once()
def load_config(section: ModelSection, trust_remote_code: bool = False) -> ModelConfig:
    """The configuration of `model.name`, as transformers reads it, without any weight.

    Raises:
        RecipeError: there is none, or it is of a checkpoint that lrft cannot train: already quantized, or with another
            head than that of a language model; or its positions cannot be stretched as the section says.
    """
    from transformers import AutoConfig

    quiet()
    name, options = resolve(section.name, section.revision)
    with opening(section.name):
        config: ModelConfig = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code, **options)
        check_config(section.name, config)
        stretch(config, section)
    return config


@stop.at_once()  # transformers and the hub never poll
def _build(section: ModelSection, config: ModelConfig, trusted: bool, meta: bool, seed: int | None) -> HF:
    """The transformers model: its weights read, drawn, or left out."""
    from transformers import AutoModelForCausalLM

    # Every architecture has eager attention; the backend that will run is set when the model is there.
    settings: dict[str, Any] = {"attn_implementation": "eager", "trust_remote_code": trusted}
    dtype = DTYPES[section.dtype]
    if not meta and section.weights == "pretrained":
        name, options = resolve(section.name, section.revision, section.dtype)
        if section.rope_scaling is not None or section.context is not None:
            settings["config"] = config
        loaded = AutoModelForCausalLM.from_pretrained(
            name,
            use_safetensors=True,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported, by name, and refused
            **settings,
            **options,
        )
        hf, report = cast(tuple[HF, LoadingReport], loaded)
        check_loaded(section.name, report)
        return _untied_as_stored(hf)
    make: Callable[..., HF] = partial(AutoModelForCausalLM.from_config, config, **settings)
    if not meta:
        return draw(make, dtype, seed)
    with torch.device("meta"):
        return make(dtype=dtype)


def _promised(section: ModelSection, skeleton: HF) -> HF:
    """The model, frozen, that waits for the weights of its linear layers."""
    name, options = resolve(section.name, section.revision, section.dtype)
    apart = section.experts == "split"
    hf = load_promised(skeleton, section.name, name, options, DTYPES[section.dtype], apart)
    hf.requires_grad_(False)
    return _untied_as_stored(hf.eval())


def _unpacked(section: ModelSection, config: ModelConfig, trusted: bool) -> tuple[HF, dict[str, Packed]]:
    """The dense model of a checkpoint in few bits, and its layers as they are stored."""
    skeleton = _build(section, config, trusted, meta=True, seed=None)
    try:
        hf = _promised(section, skeleton)
    except NotStreamed as reason:
        raise RecipeError(
            f"{section.name!r} holds layers in few bits that cannot be taken over ({reason}); name the unquantized "
            "checkpoint",
            "model.name",
        ) from None
    packed = packed_layers(hf)
    Unread(hf).finish()
    return hf, packed


def _untied_as_stored(hf: HF) -> HF:
    """A file with two different tensors is loaded as two, whatever its configuration says of tying them."""
    head = hf.get_output_embeddings()
    if head is not None and head.weight is not hf.get_input_embeddings().weight:
        hf.config.get_text_config().tie_word_embeddings = False
    return hf
