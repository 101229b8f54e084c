"""How prompts may be put together for generation, found out by trying it on the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypedDict

import torch
from torch import Tensor, nn

from lrft.model.asked import (
    Limits,
    asked_of,
    distance_between,
    reference,
    row_of,
    two_documents,
)
from lrft.model.causal_lm import CausalLM, takes
from lrft.model.hf import HF
from lrft.registry.errors import first_line


class Cache(TypedDict):
    """How keys and values are kept during generation, as transformers' settings say it."""

    cache_implementation: str
    disable_compile: bool


# Not compiled: a graph a batch size costs more than the tokens of an evaluation take.
STATIC: Cache = {"cache_implementation": "static", "disable_compile": True}
GENERATED = 3  # tokens generated to try it: the second and third need what a cache holds


@torch.no_grad()
def find_batching(model: CausalLM) -> str:
    """How prompts may be put together for generation, so that each is answered as it is alone and without a cache.

    Returns:
        `padded` (any prompts, padded on the left), `equal` (prompts of one length), `single`, or `uncached` (single
        prompts, every token computed anew).

    Raises:
        RuntimeError: the model does not generate at all; says why.
    """
    failed = "what it generates is not what its own forward pass predicts"
    with asked_of(model) as (asked, limits), own_settings(asked.hf), stock_attention(asked.hf):
        for kind, prompts in _prompts(asked).items():
            try:
                if _answers_as_alone(asked, prompts, kind != "uncached", limits):
                    return kind
            except Exception as error:  # whatever a model's own code raises; another way may do
                failed = first_line(error)
    raise RuntimeError(failed)


@torch.no_grad()
def find_static_cache(model: CausalLM, batching: str) -> bool:
    """Whether generation with a cache of its final size from the start answers as each prompt does alone.

    Args:
        batching: what `find_batching` found; the prompts that are tried are put together so.
    """
    if batching == "uncached":
        return False
    with asked_of(model) as (asked, limits), own_settings(asked.hf), stock_attention(asked.hf):
        try:
            return _answers_as_alone(asked, _prompts(asked)[batching], True, limits, STATIC)
        except Exception:  # whatever a model's own code raises; the cache that grows was tried before
            return False


def _prompts(asked: CausalLM) -> dict[str, list[list[int]]]:
    """What is tried of each way of putting prompts together."""
    first, second = two_documents(asked)
    return {
        "padded": [first, second],
        "equal": [first[: len(second)], second],
        "single": [first],
        "uncached": [first],
    }


def left_padded(prompts: list[list[int]], pad_id: int) -> dict[str, Tensor]:
    """input_ids, attention_mask and position_ids, (B, longest prompt); every prompt starts at position 0."""
    width = max(map(len, prompts))
    pads = [width - len(prompt) for prompt in prompts]
    return {
        "input_ids": torch.tensor([[pad_id] * pad + p for pad, p in zip(pads, prompts, strict=True)]),
        "attention_mask": torch.tensor([[0] * pad + [1] * (width - pad) for pad in pads]),
        "position_ids": torch.tensor([[0] * pad + list(range(width - pad)) for pad in pads]),
    }


@contextmanager
def own_settings(hf: HF) -> Iterator[None]:
    """Hide the checkpoint's generation settings; its repetition penalty, say, would fill an unset option."""
    from transformers import GenerationConfig

    previous = hf.generation_config
    hf.generation_config = GenerationConfig()
    try:
        with _last_states_together(hf):
            yield
    finally:
        hf.generation_config = previous


@contextmanager
def _last_states_together(hf: HF) -> Iterator[None]:
    """Give the head states without gaps between them.

    The last states of prompts are a slice of all; of one, torch's product on a CPU copies the weight for every row:
    1.7 GB and 2.6 s for 32 rows of 576 times 49,152 bfloat16, where 0.02 s do.
    """
    head = hf.get_output_embeddings()
    if not isinstance(head, nn.Module):
        yield
        return
    handle = head.register_forward_pre_hook(lambda _, inputs: tuple(one.contiguous() for one in inputs))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def stock_attention(hf: HF) -> Iterator[str]:
    """A stock attention implementation: those of training need know neither a cache nor left padding."""
    previous = hf.config._attn_implementation
    # Gemma 2 caps attention logits, which only the eager implementation does.
    stock = "sdpa" if hf._supports_sdpa and previous != "eager" else "eager"
    hf.set_attn_implementation(stock)
    try:
        yield stock
    finally:
        hf.set_attn_implementation(previous)


def _answers_as_alone(
    model: CausalLM, prompts: list[list[int]], cached: bool, limits: Limits, cache: Cache | None = None
) -> bool:
    """Whether the logits of a few generated tokens are those of a forward pass over all that is before them."""
    from transformers import GenerationConfig

    inputs = {name: ids.to(model.device) for name, ids in left_padded(prompts, 0).items()}
    if not takes(model.hf, "position_ids"):
        del inputs["position_ids"]
    settings = GenerationConfig(
        max_new_tokens=GENERATED,
        do_sample=False,
        use_cache=cached,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    if cache is not None:
        settings.update(**cache)
    made = model.hf.generate(**inputs, generation_config=settings)
    logits = torch.stack(made.logits, 1)  # (B, GENERATED, V)
    for row, prompt in enumerate(prompts):
        new = made.sequences[row, -GENERATED:].tolist()
        alone = reference(model, row_of(model, [*prompt, *new[:-1]]))[0, -GENERATED:]
        if not bool(alone.isfinite().all()):
            continue  # no numbers to compare; the generation itself will say so
        if not distance_between(logits[row], alone, limits) <= limits.value:
            return False
    return True
