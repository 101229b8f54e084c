"""Generation in batches, left-padded, equal to generating one row at a time; greedy where nothing else is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from lrft.core.features import Features, passing
from lrft.core.team import ALONE
from lrft.core.virtual import virtual_ids
from lrft.evaluation.batching import scoring, token_batches
from lrft.evaluation.decoded import decoded
from lrft.evaluation.divide import divided
from lrft.evaluation.sampling import Sampler, Sampling
from lrft.evaluation.subject import Subject
from lrft.model.batching import (
    STATIC,
    find_batching,
    find_static_cache,
    left_padded,
    own_settings,
    stock_attention,
)
from lrft.model.causal_lm import takes
from lrft.registry.errors import DataError, NumericalError, UsageError, first_line

STATIC_ON = (
    "cuda",
)  # devices: on a CPU the room for answers that end early would be filled with zeros for nothing


def generate(
    subject: Subject,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    stop_ids: Iterable[int] | None = None,
    what: str = "generate",
    where: Callable[[int], str] = "row {}".format,
    sampling: Sampling | None = None,
    first: int = 0,
    features: Sequence[Features] | None = None,
    keep_stop: bool = False,
    numbers: Sequence[int] | None = None,
) -> list[list[int]]:
    """The most likely next token, or one drawn, again and again, for every prompt.

    Args:
        prompts: token ids; sorted by length and batched by tokens here, answered in the order given.
        stop_ids: tokens that end a row; by default the subject's.
        what: the name the progress display shows.
        where: names a prompt in an error.
        sampling: how tokens are drawn; greedy without it.
        first: the number of the first prompt; number and seed decide what is drawn, and nothing else does.
        numbers: of every prompt, where they do not follow one another.
        features: of the row of each prompt, for adapters that go by them.
        keep_stop: the stop token stays, which then is the last one.

    Returns:
        Generated ids per prompt, cut before the first stop token: a row of `max_new_tokens` never stopped.

    Raises:
        DataError: an empty prompt, or one that with its answer needs more positions than the model has.
        UsageError: the model cannot generate, or its adapter goes by features that are not given.
        NumericalError: logits are no numbers, so the likeliest token means nothing.
        EvaluationStopped: a signal came, also in the middle of a batch.
    """
    stops = sorted(subject.stop_ids if stop_ids is None else stop_ids)
    subject.check_features(features, what)
    before = virtual_ids(subject.model.virtual_now)
    lengths = [len(before) + len(prompt) + max_new_tokens for prompt in prompts]
    subject.check_lengths(lengths, where)
    if [] in prompts:
        raise DataError(
            f"{where(list(prompts).index([]))}: the prompt is empty; use a format that writes one"
        )
    hf = subject.hf
    batching = batching_of(subject)
    most = max_new_tokens if subject.most_new is None else min(max_new_tokens, subject.most_new)
    config = greedy_settings(most, batching != "uncached", stops, subject.pad_id)
    if has_static_cache(subject, batching):
        config.update(**STATIC)
    size = 1 if batching in ("single", "uncached") else subject.batch_tokens
    batches = token_batches(lengths, size, equal=batching == "equal")
    numbers = range(first, first + len(prompts)) if numbers is None else numbers

    def answer(indices: list[int]) -> list[list[int]]:
        drawn = Drawn(sampling, [numbers[i] for i in indices]) if sampling and not sampling.greedy else None
        with nullcontext() if features is None else passing([features[i] for i in indices]):
            new, bad = generate_batch(subject, [[*before, *prompts[i]] for i in indices], config, drawn)
        if bad is not None:
            raise no_numbers(where(indices[bad]))
        subject.poll(0, len(prompts))  # the batch may have been cut short
        return [tokens[: len(before_stop(tokens, stops)) + keep_stop] for tokens in new]

    team = ALONE if subject.team.in_step else subject.team  # answers take unequally many passes
    with scoring(subject.model), own_settings(hf), stock_attention(hf), decoded(hf):
        found = divided(batches, answer, subject.watch(what, len(prompts)), len, team)
    outputs: list[list[int]] = [[] for _ in prompts]
    for indices, answers in zip(batches, found, strict=True):
        for index, tokens in zip(indices, answers, strict=True):
            outputs[index] = tokens
    return outputs


def greedy_settings(max_new_tokens: int, cached: bool, stops: list[int], pad_id: int) -> GenerationConfig:
    """The likeliest token each time; where others are drawn, the logits are changed so that they are it."""
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        use_cache=cached,
        eos_token_id=stops or None,
        pad_token_id=pad_id,
    )


def no_numbers(place: str) -> NumericalError:
    """What to raise where logits mean nothing."""
    return NumericalError(
        f"{place}: the model's logits are no finite numbers, so there is no score; weights or activations overflowed"
    )


def batching_of(subject: Subject) -> str:
    """How this model's prompts may be put together, asked of it once.

    Raises:
        UsageError: it cannot generate.
    """
    if subject.model.batching is None:
        try:
            subject.model.batching = find_batching(subject.model)
        except Exception as error:  # whatever a model's own code raises
            reason = first_line(error)
            raise UsageError(
                f"eval.tasks: {type(subject.hf).__name__} cannot generate ({reason}); choose tasks that score given "
                "answers, such as loss"
            ) from None
    return subject.model.batching


def has_static_cache(subject: Subject, batching: str) -> bool:
    """Whether keys and values get their room at the start: where growing it would be a copy a token on a device."""
    model = subject.model
    if model.device.type not in STATIC_ON:
        return False
    if model.static_cache is None:
        model.static_cache = find_static_cache(model, batching)
    return model.static_cache


def before_stop(tokens: list[int], stop_ids: Iterable[int]) -> list[int]:
    """Tokens up to the first stop token, itself left out."""
    stops = set(stop_ids)
    return tokens[: next((place for place, token in enumerate(tokens) if token in stops), len(tokens))]


class Streamer(Protocol):
    """Hears of the prompt, then of every token as it is chosen."""

    def put(self, value: Tensor) -> None: ...

    def end(self) -> None: ...


class Drawn(NamedTuple):
    """How the rows of a batch are drawn, and their numbers."""

    sampling: Sampling
    rows: list[int]


class _Poll(StoppingCriteria):
    """Ends a batch early when a signal came."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        return torch.full(
            input_ids.shape[:1], self.subject.asked_to_stop(), device=input_ids.device, dtype=torch.bool
        )


class _Finite(LogitsProcessor):
    """Remembers rows whose logits were no numbers; read once a batch, so that no token waits for the device."""

    def __init__(self) -> None:
        self.bad: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        bad = ~scores.amax(-1).isfinite()
        self.bad = bad if self.bad is None else self.bad | bad
        return scores

    def first(self) -> int | None:
        """The first such row of the batch."""
        rows = [] if self.bad is None else self.bad.tolist()
        return rows.index(True) if True in rows else None


def generate_batch(
    subject: Subject,
    prompts: list[list[int]],
    config: GenerationConfig,
    drawn: Drawn | None = None,
    streamer: Streamer | None = None,
) -> tuple[list[list[int]], int | None]:
    """New tokens of each row, and the first row whose logits were no numbers."""
    inputs = {
        name: tensor.to(subject.model.device)
        for name, tensor in left_padded(prompts, subject.pad_id).items()
        if name != "position_ids" or takes(subject.hf, name)
    }
    finite, width = _Finite(), inputs["input_ids"].shape[1]
    sampler = [] if drawn is None else [Sampler(drawn.sampling, drawn.rows, width)]
    produced = subject.hf.generate(
        **inputs,
        generation_config=config,
        stopping_criteria=StoppingCriteriaList([_Poll(subject)]),
        logits_processor=LogitsProcessorList([finite, *sampler]),
        streamer=streamer,
    )
    new: list[list[int]] = produced[:, width:].tolist()
    return new, finite.first()
