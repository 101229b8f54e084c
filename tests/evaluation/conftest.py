"""Subjects with weights large enough that a wrong position or mask changes what is generated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from lrft.core.adapted import adapted
from lrft.core.frozen import FrozenLinear
from lrft.data.sources import Rows
from lrft.data.tokenize import Renderer, token_ids
from lrft.evaluation.subject import Subject
from lrft.model.attach import attach, make_plan
from lrft.model.builder import SiteBuilder
from lrft.model.load import load_model
from lrft.model.sites import linear_sites
from lrft.model.tokenizer import load_tokenizer, pad_id
from lrft.recipe.sections import ModelSection
from lrft.registry.axes import ADAPTERS, FORMATS, INITS, QUANTIZERS
from lrft.registry.config import parse_choice


@pytest.fixture
def make_subject(tiny) -> Callable[..., Subject]:
    """`make_subject(family, rows=..., format=..., attention=...)`."""

    def make(
        family: str = "llama",
        rows: Sequence[dict[str, Any]] = (),
        format: Any = "prompt_completion",
        attention: Any = "auto",
        batch_tokens: int = 512,
        **watching: Any,
    ) -> Subject:
        section = ModelSection(name=str(tiny(family, tied=False)), dtype="float32", attention=attention)
        model = load_model(section)
        loud(model.hf)
        tokenizer, stops = load_tokenizer(section)
        config = parse_choice(FORMATS, format)
        renderer = Renderer(tokenizer, FORMATS.get(config.method)(config), stops, max_length=512)
        held_out = Rows(list(rows), "made.jsonl", "made", list(range(1, len(rows) + 1))) if rows else None
        pad = pad_id(tokenizer, stops)
        return Subject(model, tokenizer, renderer, held_out, stops, pad, batch_tokens, **watching)

    return make


@torch.no_grad()
def loud(hf: torch.nn.Module) -> None:
    """Redraw matrices at a scale where a random model says different things after different prompts."""
    generator = torch.Generator().manual_seed(1)
    for parameter in hf.parameters():
        if parameter.dim() == 2:
            std = 1.5 / parameter.shape[-1] ** 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


@pytest.fixture
def random_prompts() -> Callable[[Sequence[int]], list[list[int]]]:
    """Prompts of the given lengths; the same each time."""

    def make(lengths: Sequence[int]) -> list[list[int]]:
        generator = torch.Generator().manual_seed(0)
        return [torch.randint(3, 500, (length,), generator=generator).tolist() for length in lengths]

    return make


@pytest.fixture(name="adapt")
def adapt_fixture() -> Callable[[Subject, str], list[FrozenLinear]]:
    return adapt


def adapt(subject: Subject, quantization: str) -> list[FrozenLinear]:
    """Attach adapters that change something, on frozen layers of one storage; returns those layers."""
    sites = linear_sites(subject.model)
    config = parse_choice(ADAPTERS, "lora")
    plan = make_plan(sites, config)
    init = INITS.get("default")(parse_choice(INITS, "default"))
    storage = QUANTIZERS.get(quantization)
    settings = parse_choice(QUANTIZERS, quantization)
    store = lambda weight, bias: storage(weight, bias, settings)  # noqa: E731
    attach(subject.model, plan, SiteBuilder(store, ADAPTERS.get("lora"), config, init))
    for _, site in adapted(subject.model):
        torch.nn.init.normal_(site.adapter.get_parameter("B"), std=0.1)
    return [module for module in subject.model.modules() if isinstance(module, FrozenLinear)]


@pytest.fixture
def quantized_subject(make_subject) -> tuple[Subject, list[FrozenLinear]]:
    subject = make_subject()
    return subject, adapt(subject, "nf4_reference")


@pytest.fixture
def dense_subject(make_subject) -> Subject:
    subject = make_subject()
    adapt(subject, "none")
    return subject


@pytest.fixture
def say(monkeypatch) -> Callable[..., None]:
    """`say(subject, outputs, unstopped=())`: generation answers with these texts, one a row."""
    from lrft.evaluation.tasks import _answers

    def answer(subject: Subject, outputs: Sequence[str], unstopped: Sequence[int] = ()) -> None:
        def spoken(
            asked: Subject, prompts: list[list[int]], max_new_tokens: int, **named: Any
        ) -> list[list[int]]:
            tokens = [token_ids(subject.tokenizer, text) for text in outputs[: len(prompts)]]
            space = token_ids(subject.tokenizer, " ")
            return [
                t + space * (max_new_tokens - len(t)) if i in unstopped else t for i, t in enumerate(tokens)
            ]

        monkeypatch.setattr(_answers, "generate", spoken)

    return answer
