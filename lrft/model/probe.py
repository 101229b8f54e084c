"""Whether a loaded model computes what lrft takes for granted, asked of the model itself before anything trains.

Two short documents go through the very attention backend that will train. Edits of one document must not reach the
other one, nor earlier tokens: the shapes stay the same, so any difference beyond rounding is a leak. Documents packed
in a row, and rows of a batch, must give the logits that transformers' own eager forward pass gives them alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from lrft.core.batch import Batch
from lrft.core.frozen import FrozenLinear
from lrft.model import attention
from lrft.model.causal_lm import CausalLM, takes
from lrft.model.hf import HF

LENGTHS = (9, 7)  # tokens of the two documents, beyond the reach of the usual convolutions
GENERATED = 3  # tokens generated to try it: the second and third need what a cache holds
SMALL = 50_000_000  # parameters up to which the questions are asked of a float32 copy, which has no rounding to excuse
HEAD, FUTURE, ROWS, PACKED, VALUES = "head", "future", "rows", "packed", "values"


@dataclass(frozen=True)
class Fault:
    """One thing that a model computes otherwise than it should.

    Attributes:
        kind: `future` (later tokens reach earlier ones), `packed` (documents of a row reach one another, or are
            computed otherwise than alone), `rows` (rows of a batch are computed otherwise than alone), or `values`
            (the backend differs from eager attention).
        what: in words.
    """

    kind: str
    what: str


@dataclass(frozen=True)
class Limits:
    """How far numbers may be apart, relative to the spread of the logits.

    Attributes:
        edit: where an edit must not be seen, as a share of where it must; the shapes are equal there.
        value: between two ways to compute the same logits.
        every: every position counts; else the median one, since rounding turns single choices of experts.
    """

    edit: float
    value: float
    every: bool


EXACT, ROUNDED = Limits(1e-5, 1e-3, True), Limits(2e-2, 1e-1, False)


@torch.no_grad()
def find_fault(model: CausalLM, packing: bool) -> Fault | None:
    """The first thing that the model, with the attention backend it has, computes wrongly; None when all is well.

    Args:
        model: on the device it will run on; put into evaluation mode and back.
        packing: rows will hold several documents.
    """
    with _asked(model) as (asked, limits):
        try:
            return _fault(asked, packing, limits)
        except attention.Unsupported as error:
            return Fault(VALUES, str(error))
        except Exception as error:  # whatever a model's own code raises: it cannot be run in this way
            return Fault(VALUES, f"its forward pass ends in {type(error).__name__}: {_first_line(error)}")


@torch.no_grad()
def looks_ahead(model: CausalLM) -> bool:
    """Whether transformers' own eager forward pass lets later tokens change what is predicted before them."""
    with _asked(model) as (asked, limits):
        first, second = _documents(asked)
        rows = torch.tensor([first, [*first[:-1], _other(asked, first[-1], {*first, *second})]])
        before, after = reference(asked, rows).float()
        return _spread(after[:-1] - before[:-1]) > limits.edit * _spread(after[-1:] - before[-1:])


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
    with _asked(model) as (asked, limits), own_settings(asked.hf), stock_attention(asked.hf):
        first, second = _documents(asked)
        tries = {
            "padded": [first, second],
            "equal": [first[: len(second)], second],
            "single": [first],
            "uncached": [first],
        }
        for kind, prompts in tries.items():
            try:
                if _answers_as_alone(asked, prompts, kind != "uncached", limits):
                    return kind
            except Exception as error:  # whatever a model's own code raises; another way may do
                failed = _first_line(error)
    raise RuntimeError(failed)


def _answers_as_alone(model: CausalLM, prompts: list[list[int]], cached: bool, limits: Limits) -> bool:
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
    made = model.hf.generate(**inputs, generation_config=settings)
    logits = torch.stack(made.logits, 1)  # (B, GENERATED, V)
    for row, prompt in enumerate(prompts):
        new = made.sequences[row, -GENERATED:].tolist()
        alone = reference(model, _row(model, [*prompt, *new[:-1]]))[0, -GENERATED:]
        if not bool(alone.isfinite().all()):
            continue  # no numbers to compare; the generation itself will say so
        if not _distance(logits[row], alone, limits) <= limits.value:
            return False
    return True


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
        yield
    finally:
        hf.generation_config = previous


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


def reference(model: CausalLM, ids: Tensor) -> Tensor:
    """Logits (B, L, V) of transformers' own eager forward pass over rows without padding."""
    backend = model.attention
    model.hf.set_attn_implementation("eager")
    try:
        logits: Tensor = model.hf(input_ids=ids.to(model.device), use_cache=False).logits
        return logits
    finally:
        model.hf.set_attn_implementation(backend)


def batch_of(rows: list[list[list[int]]]) -> Batch:
    """Rows of documents, nothing supervised, padded on the right."""
    length = max(sum(map(len, row)) for row in rows)
    ids, positions = torch.zeros(2, len(rows), length, dtype=torch.int64)
    documents = []
    for number, row in enumerate(rows):
        at = 0
        for document in row:
            end = at + len(document)
            ids[number, at:end], positions[number, at:end] = torch.tensor(document), torch.arange(end - at)
            documents.append((number, at, end))
            at = end
        positions[number, at:] = torch.arange(length - at)
    none = ids.new_empty(0)
    return Batch(ids, positions, tuple(documents), none, none)


def _fault(model: CausalLM, packing: bool, limits: Limits) -> Fault | None:
    first, second = _documents(model)
    edited = [*first[:-1], _other(model, first[-1], {*first, *second})]
    rows = [[first, second]] if packing else [[first], [second]]
    with attention.listening():
        before = _per_document(model, rows)
        after = _per_document(model, [[edited, *row[1:]] if row[0] is first else row for row in rows])
        alone = _per_document(model, [[first], [second]]) if packing else before
    expected = [reference(model, _row(model, document))[0] for document in (first, second)]
    moved = _spread(after[0][-1:] - before[0][-1:])
    future = _spread(after[0][:-1] - before[0][:-1]) / moved
    leak = _spread(after[1] - before[1]) / moved
    if not future <= limits.edit:
        return Fault(FUTURE, "later tokens change what is predicted before them")
    for logits, wanted in zip(alone, expected, strict=True):
        if not (distance := _distance(logits, wanted, limits)) <= limits.value:
            what = f"its logits differ from those of transformers' eager attention by {distance:.2g} of their spread"
            return Fault(VALUES, what)
    if packing and not leak <= limits.edit:
        return Fault(PACKED, "documents packed into one row see each other")
    for logits, wanted in zip(before, expected, strict=True):
        if not (distance := _distance(logits, wanted, limits)) <= limits.value:
            what = f"documents packed into one row are computed otherwise than alone ({distance:.2g} of the spread)"
            return Fault(PACKED, what)
    return None


@contextmanager
def _asked(model: CausalLM) -> Iterator[tuple[CausalLM, Limits]]:
    """The model to ask, in evaluation mode, and what to allow it."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        small = sum(parameter.numel() for parameter in model.parameters()) <= SMALL
        # A stored layer decodes to the precision it was made for, so a copy of it computes in no other.
        small = small and not any(isinstance(module, FrozenLinear) for module in model.modules())
        if model.dtype == torch.float32:
            yield model, EXACT
        elif small and model.device.type == "cpu":
            yield _as_float32(model), EXACT
        else:
            yield model, ROUNDED
    finally:
        for module, training in modes:
            module.training = training


def _as_float32(model: CausalLM) -> CausalLM:
    exact = CausalLM(copy.deepcopy(model.hf).float())
    exact.hf.set_attn_implementation(model.attention)
    exact.scale, exact.softcap = model.scale, model.softcap
    return exact


def _documents(model: CausalLM) -> tuple[list[int], list[int]]:
    """Token ids of two documents that share none, special ones left out."""
    config, size = model.hf.config.get_text_config(), model.hf.get_input_embeddings().num_embeddings
    special: set[int] = set()
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        value = getattr(config, name, None)
        special |= {value} if isinstance(value, int) else set(value or ())
    usable = [token for token in range(size) if token not in special] or list(range(size))
    step = max(1, len(usable) // sum(LENGTHS))
    drawn = [usable[(step * place) % len(usable)] for place in range(sum(LENGTHS))]
    return drawn[: LENGTHS[0]], drawn[LENGTHS[0] :]


def _other(model: CausalLM, token: int, taken: set[int]) -> int:
    size = model.hf.get_input_embeddings().num_embeddings
    return next((t for t in range(size - 1, -1, -1) if t not in taken), (token + 1) % size)


def _row(model: CausalLM, document: list[int]) -> Tensor:
    return torch.tensor([document], device=model.device)


def _per_document(model: CausalLM, rows: list[list[list[int]]]) -> list[Tensor]:
    """Logits (tokens, V) of each document in float32, less their mean, which no prediction depends on."""
    batch = batch_of(rows)
    logits = model(batch.to(model.device)).float()
    logits = logits - logits.mean(-1, keepdim=True)
    return [logits[row, start:end] for row, start, end in batch.documents]


def _spread(logits: Tensor) -> float:
    """The largest length of a position's logits; what is no number is infinitely long."""
    length = float(logits.norm(dim=-1).max())
    return max(length, 1e-30) if length == length else torch.inf


def _distance(ours: Tensor, theirs: Tensor, limits: Limits) -> float:
    """How far the logits (tokens, V) of the worst, or of the median position are apart."""
    ours, theirs = (x.float() - x.float().mean(-1, keepdim=True) for x in (ours, theirs))
    apart = (ours - theirs).norm(dim=-1) / theirs.norm(dim=-1).mean().clamp_min(1e-30)
    return float(apart.max() if limits.every else apart.median())


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else "no message"
