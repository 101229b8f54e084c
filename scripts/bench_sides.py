"""A training step as lrft takes it, and the same as its peers take it at their defaults.

A side is named `LIBRARY:METHOD`. PEFT's settings are those that lrft's own export writes for the method, so that what
PEFT does not have is known from the method itself. Peers are imported when they are asked for, and are no dependency.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import importlib.util
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from bench_rows import Work
from bench_settings import LR, Settings
from lrft.build.adapt import adapt
from lrft.build.native import kernels_of
from lrft.core.params import count
from lrft.core.run import Run
from lrft.data.steps import StepBatches
from lrft.export.peft_format import peft_form
from lrft.model.gguf import cache_root
from lrft.model.trained import parameter_infos
from lrft.ops.compiled import can_compile
from lrft.registry.axes import OBJECTIVES, OPTIMIZERS
from lrft.registry.errors import UsageError
from lrft.training import schedule
from lrft.training.step import step_loss

Keys = dict[str, Any]
"""Of a PEFT configuration."""


@dataclass
class Side:
    """One model that trains.

    Attributes:
        step: one optimizer step; gives its loss.
        trained: numbers that train.
        model: a `CausalLM` of lrft, or what PEFT made.
    """

    name: str
    step: Callable[[Work], float]
    trained: int
    model: Any
    keys: Keys | None = None

    def release(self) -> None:
        """Let the model go; two that are timed are never beside a third."""
        self.model = self.step = None  # type: ignore[assignment]
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)


def lrft_side(settings: Settings) -> Side:
    """One optimizer step through the code that training runs; `keys` is what PEFT calls it, or None.

    Raises:
        RecipeError: the settings do not go together.
    """
    recipe = settings.recipe()
    adaptation = adapt(recipe, device=settings.device)
    model = adaptation.model.train()
    infos = parameter_infos(model)
    optimizer = OPTIMIZERS.get("adamw").build(infos, recipe.optimizer)
    rate = schedule.build(optimizer, recipe.schedule, 1000)  # at its first step for good
    compiled = (
        settings.device != "cpu" and not settings.eager and not can_compile(cache_root().parent / "compiled")
    )
    kernels = None if settings.eager else kernels_of(adaptation)
    run = Run(model, infos, optimizer, rate, 1000, compiled=compiled, kernels=kernels)
    objective = OBJECTIVES.get("cross_entropy")(recipe.objective)

    def step(work: Work) -> float:
        batch = work.packed
        steps = StepBatches([batch], 1, work.targets, work.tokens, len(batch.examples), 0.0)
        loss = step_loss(run, steps, objective)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss)

    trained = count(info.param for info in infos)
    return Side(f"lrft:{settings.adapter}", step, trained, model, peft_form(model, recipe)[1])


def peft_side(settings: Settings, keys: Keys) -> Side:
    """The same step of transformers and PEFT at their defaults.

    Raises:
        UsageError: PEFT is not installed, or its form of the method has no dropout.
    """
    require("peft")
    from peft import get_peft_model

    base = base_model(settings)
    if settings.checkpointing:
        base.gradient_checkpointing_enable()
        base.enable_input_require_grads()
    model = get_peft_model(base, peft_config(settings, keys)).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LR)

    def step(work: Work) -> float:
        loss = model(**{name: tensor.to(settings.device) for name, tensor in work.padded.items()}).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return Side(f"peft:{settings.adapter}", step, count(parameters), model)


def trl_side(settings: Settings, keys: Keys) -> Side:
    """The same step through TRL's SFTTrainer at its defaults, collating included, clipping and logging left out.

    Raises:
        UsageError: TRL or PEFT is not installed.
    """
    require("peft")
    require("trl")
    from datasets import Dataset
    from transformers import AutoTokenizer

    trl = importlib.import_module("trl")

    def rows(work: Work) -> list[dict[str, Any]]:
        marks = [
            [-100 if not s else i for i, s in zip(d.input_ids, d.supervised, strict=True)]
            for d in work.documents
        ]
        return [{"input_ids": d.input_ids, "labels": m} for d, m in zip(work.documents, marks, strict=True)]

    options = trl.SFTConfig(
        output_dir=tempfile.mkdtemp(prefix="bench-trl-"),
        learning_rate=LR,
        max_length=None,
        report_to="none",
        use_cpu=settings.device == "cpu",
    )
    trainer = trl.SFTTrainer(
        model=base_model(settings),
        args=options,
        train_dataset=Dataset.from_list([{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}]),
        processing_class=AutoTokenizer.from_pretrained(settings.folder()),
        peft_config=peft_config(settings, keys),
    )
    optimizer = trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1

    def step(work: Work) -> float:
        loss = trainer.training_step(trainer.model, trainer.data_collator(rows(work)))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss)

    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    return Side(f"trl:{settings.adapter}", step, count(parameters), trainer.model)


PEERS: dict[str, Callable[[Settings, Keys], Side]] = {"peft": peft_side, "trl": trl_side}


def peer_side(peer: str, settings: Settings, keys: Keys | None, trained: int) -> Side:
    """A peer's side of the same settings, where as many numbers train.

    Raises:
        UsageError: it is not installed, or has no form of the method.
    """
    require(peer)
    if keys is None:
        raise UsageError(
            f"PEFT has no form for {settings.adapter}; compare it with lrft's own LoRA (--adapters)"
        )
    side = PEERS[peer](settings, keys)
    if side.trained != trained:
        kind, there = keys["peft_type"], f"{side.trained:,}"
        side.release()
        raise UsageError(
            f"PEFT holds {settings.adapter} as {kind} with {there} numbers where {trained:,} train here: it does not "
            "have the method"
        )
    return side


def require(library: str) -> None:
    """See that an optional library is there.

    Raises:
        UsageError: it is not.
    """
    if importlib.util.find_spec(library) is None:
        raise UsageError(
            f"{library} is not installed; `pip install {library}`, or `--peer none` for lrft alone"
        )


def base_model(settings: Settings) -> Any:
    """The base model as transformers loads it, quantized by bitsandbytes.

    Raises:
        UsageError: a storage that the peers do not have.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    formats: dict[str, dict[str, Any]] = {
        "none": {},
        "nf4": {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": torch.bfloat16,
        },
        "int8": {"load_in_8bit": True},
    }
    if settings.quantization not in formats:
        raise UsageError(
            f"{settings.quantization} is a storage of lrft alone; peers have {', '.join(formats)}"
        )
    options: dict[str, Any] = {"dtype": torch.bfloat16}
    if chosen := formats[settings.quantization]:
        options["quantization_config"] = BitsAndBytesConfig(**chosen)
    if settings.device != "cpu":
        options["device_map"] = {"": settings.device}
    return AutoModelForCausalLM.from_pretrained(settings.folder(), **options)


def peft_config(settings: Settings, keys: Keys) -> Any:
    """PEFT's configuration of the method, as lrft exports it, to train anew.

    Raises:
        UsageError: PEFT's form of it has no dropout.
    """
    from peft import PeftConfig

    config = PeftConfig.from_peft_type(**{**keys, "inference_mode": False})
    if settings.dropout:
        names = [name for name in vars(config) if name.endswith("dropout")]
        if len(names) != 1:
            raise UsageError(f"PEFT's {settings.adapter} has no dropout; leave --dropout out")
        setattr(config, names[0], settings.dropout)
    return config
