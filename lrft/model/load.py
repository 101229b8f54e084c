"""Loading the base model and its tokenizer: one way, used by training, evaluation and merging alike."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypedDict, cast

import torch

from lrft.data.hub import offline_if_unreachable
from lrft.model import attention, gguf, head
from lrft.model.backend import first_backend
from lrft.model.causal_lm import CausalLM
from lrft.model.checkpoint import LoadingReport, check_config, check_loaded
from lrft.model.direct import find_direct
from lrft.model.hf import HF, ModelConfig
from lrft.recipe.schema import ModelSection
from lrft.registry.errors import RecipeError
from lrft.registry.protocols import Tokenizer

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}


class Where(TypedDict, total=False):
    """How transformers is told which files of a hub model are meant."""

    revision: str


def load_tokenizer(section: ModelSection, trust_remote_code: bool = False) -> tuple[Tokenizer, set[int]]:
    """The tokenizer of `model.tokenizer`, or of `model.name`, and every token id that ends a generation.

    The pad token is never one of the stop tokens: a tokenizer whose pad is its stop token gets another special token.
    """
    from transformers import AutoTokenizer, GenerationConfig

    quiet()
    key, source = _tokenizer_source(section)
    name, options = _resolve(*source)
    try:
        found = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code, **options)
    except (OSError, ValueError, KeyError) as error:
        raise _unloadable(source[0], error, key) from None
    tokenizer = cast(Tokenizer, found)  # transformers finds names of special tokens when they are asked for
    stops = set() if tokenizer.eos_token_id is None else {tokenizer.eos_token_id}
    if section.weights == "pretrained":  # what a model was trained to stop at; one without weights was not
        name, options = _resolve(section.name, section.revision)
    try:
        ends = GenerationConfig.from_pretrained(name, **options).eos_token_id
        stops |= set(ends if isinstance(ends, list) else [ends]) - {None}
    except OSError:
        pass  # a model without a generation config stops at its tokenizer's eos
    if not stops:
        raise RecipeError("the tokenizer has no end-of-sequence token, so nothing could learn to stop", key)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in stops:
        token = _spare_token(tokenizer, stops)
        if token is not None:
            tokenizer.pad_token = token
    return tokenizer, stops


def pad_id(tokenizer: Tokenizer, stops: set[int]) -> int:
    """The id that fills rows: the pad token, or the first id that stops nothing. Never seen by the loss."""
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in stops:
        return int(tokenizer.pad_token_id)
    return next(i for i in range(len(tokenizer)) if i not in stops)


def load_model(
    section: ModelSection,
    *,
    device: torch.device | str = "cpu",
    trust_remote_code: bool = False,
    meta: bool = False,
    seed: int | None = None,
) -> CausalLM:
    """The dense base model, frozen, in `model.dtype`, attention backend chosen.

    Args:
        section: the recipe's `model` section.
        device: where it will run; decides the default attention backend. Weights are loaded on the CPU.
        meta: build the architecture without weights.
        seed: of the run, `train.seed`, which random weights are drawn from.

    Raises:
        RecipeError: the model cannot be loaded, or computes its logits in a way lrft does not know.
    """
    from safetensors import SafetensorError

    quiet()
    attention.register()
    config = load_config(section, trust_remote_code)
    try:
        hf = _build(section, config, trust_remote_code, meta, seed)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise _unloadable(section.name, error) from None
    hf.requires_grad_(False)
    hf.eval()
    model = CausalLM(hf)
    if not meta:
        head.settle(model)
    model.direct = _direct(hf)
    first_backend(model, section, torch.device(device))
    if not meta:
        model.fingerprint = fingerprint(hf)
    return model


def _direct(hf: HF) -> frozenset[str]:
    try:
        return find_direct(hf)
    except Exception as error:  # whatever a model's own code raises
        reason = (str(error).strip().splitlines() or [""])[0][:160]
        raise RecipeError(
            f"transformers cannot run {type(hf).__name__} in training mode ({type(error).__name__}: {reason}); "
            "docs/models.md lists families that train",
            "model.name",
        ) from None


def load_config(section: ModelSection, trust_remote_code: bool = False) -> ModelConfig:
    """The configuration of `model.name`, as transformers reads it, without any weight.

    Raises:
        RecipeError: there is none, or it is of a checkpoint that lrft cannot train: already quantized, or with another
            head than that of a language model.
    """
    from transformers import AutoConfig

    quiet()
    name, options = _resolve(section.name, section.revision)
    try:
        config: ModelConfig = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code, **options)
    except (OSError, ValueError, KeyError) as error:
        raise _unloadable(section.name, error) from None
    check_config(section.name, config)
    return config


def _build(section: ModelSection, config: ModelConfig, trusted: bool, meta: bool, seed: int | None) -> HF:
    """The transformers model: its weights read, drawn, or left out."""
    from transformers import AutoModelForCausalLM

    name, options = _resolve(section.name, section.revision)
    # Every architecture has eager attention; the backend that will run is set when the model is there.
    settings = {"attn_implementation": "eager", "trust_remote_code": trusted}
    dtype = DTYPES[section.dtype]
    if not meta and section.weights == "pretrained":
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
        if hf.get_output_embeddings() is not None and not _is_tied(hf):
            # A file with two different tensors is loaded as two, whatever its configuration says of tying them.
            hf.config.get_text_config().tie_word_embeddings = False
        return hf
    make: Callable[..., HF] = partial(AutoModelForCausalLM.from_config, config, **settings)
    if not meta:
        return _draw(make, dtype, seed)
    with torch.device("meta"):
        hf = make(dtype=dtype)
    return hf


def _is_tied(hf: HF) -> bool:
    head = hf.get_output_embeddings()
    return head is not None and head.weight is hf.get_input_embeddings().weight


def _draw(make: Callable[..., HF], dtype: torch.dtype, seed: int | None) -> HF:
    """The architecture's own random start: drawn on the CPU in float32, rounded to `dtype` once."""
    assert seed is not None, "random weights need the seed of the run"
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        hf = make(dtype=torch.float32)
    for (
        parameter
    ) in hf.parameters():  # buffers, such as rotary frequencies, stay float32 as loading leaves them
        parameter.data = parameter.data.to(dtype)
    hf.config.dtype = dtype
    return hf


def configure(model: CausalLM, section: ModelSection) -> None:
    """Turn on activation checkpointing (never the reentrant kind) and compilation, as the recipe says."""
    if section.activation_checkpointing:
        # The reentrant kind drops the graph of routed adapters' penalties without a word.
        model.hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if section.compile:
        model.compile()


def fingerprint(hf: HF) -> str:
    """sha256 over names, shapes and sampled values of every parameter: the same base gives the same string."""
    digest = hashlib.sha256()
    for name, parameter in sorted(hf.named_parameters()):
        flat = parameter.detach().flatten()
        sample = flat[:: max(1, flat.numel() // 1024)][:1024].float()
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()


def quiet() -> None:
    """Keep transformers' own bars and advice out of our output."""
    from transformers.utils import logging as hf_logging

    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)


def _tokenizer_source(section: ModelSection) -> tuple[str, tuple[str, str | None]]:
    """The key that names the tokenizer, its name and its revision, which is that of the model alone."""
    if section.tokenizer is None:
        return "model.name", (section.name, section.revision)
    return "model.tokenizer", (section.tokenizer, None)


def _resolve(name: str, revision: str | None) -> tuple[str, Where]:
    path = gguf.locate(name)
    if path is not None:
        return str(gguf.converted(path)), {}
    if not Path(name).is_dir():
        offline_if_unreachable()
    return name, {"revision": revision} if revision else {}


def _unloadable(name: str, error: Exception, key: str = "model.name") -> RecipeError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    kinds = "safetensors, or" if key == "model.name" else "a tokenizer, or"
    return RecipeError(
        f"{name!r} could not be loaded ({reason}); give a hub id, a local folder with {kinds} a .gguf file",
        key,
    )


def _spare_token(tokenizer: Tokenizer, stops: set[int]) -> str | None:
    """A special token that ends nothing and begins nothing: unk first, then one that calls itself padding."""
    special = [tokenizer.unk_token, *(str(t) for t in tokenizer.added_tokens_decoder.values() if t.special)]
    usable = [
        token
        for token in special
        if token is not None
        and tokenizer.convert_tokens_to_ids(token) not in stops
        and token != tokenizer.bos_token
    ]
    padding = [token for token in usable if "pad" in token.lower()]
    return next(iter([*padding, *usable]), None)
