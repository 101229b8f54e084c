"""What an unknown key was meant to be: misspelt, of another section or method, or another toolkit's word."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from lrft.core.registry import Registry
from lrft.recipe.fields import listed, slot_at, value_at
from lrft.recipe.schema import Recipe
from lrft.recipe.tree import dotted

SECRET = re.compile(r"(.*_)?(token|password|passwd|secret|api_?key|access_?key|credentials?)", re.IGNORECASE)

# Words for a key of the same section.
SYNONYMS = {
    "name": "method",
    "type": "method",
    "kind": "method",
    "path": "source",
    "file": "source",
    "files": "source",
    "folder": "source",
    "dataset": "source",
    "id": "source",
    "config": "name",
}

# Keys of PEFT, transformers, TRL, axolotl and others -> the key that means the same here.
FOREIGN_KEYS = {
    "alpha_r": "adapter.alpha",
    "batch": "train.batch_size",
    "base_model": "model.name",
    "bits": "quantization.method",
    "dataset": "data.train",
    "datasets": "data.train",
    "dataset_text_field": "data.format",
    "eval_dataset": "data.eval",
    "eval_steps": "train.eval_every",
    "gradient_accumulation_steps": "train.gradient_accumulation",
    "gradient_checkpointing": "model.activation_checkpointing",
    "grad_clip": "train.clip",
    "learning_rate": "optimizer.lr",
    "load_in_4bit": "quantization.method",
    "load_in_8bit": "quantization.method",
    "logging_steps": "logging.every",
    "lora_alpha": "adapter.alpha",
    "lora_dropout": "adapter.dropout",
    "lora_r": "adapter.rank",
    "lr_scheduler": "schedule.method",
    "lr_scheduler_type": "schedule.method",
    "max_grad_norm": "train.clip",
    "max_seq_length": "train.max_length",
    "micro_batch_size": "train.batch_size",
    "model_name_or_path": "model.name",
    "num_epochs": "train.epochs",
    "num_train_epochs": "train.epochs",
    "per_device_train_batch_size": "train.batch_size",
    "r": "adapter.rank",
    "save_steps": "train.save_every",
    "scheduler": "schedule.method",
    "sequence_len": "train.max_length",
    "sequence_length": "train.max_length",
    "steps": "train.max_steps",
    "target_modules": "adapter.targets",
    "torch_dtype": "model.dtype",
    "train_dataset": "data.train",
    "use_rslora": "adapter.rslora",
    "val_dataset": "data.eval",
    "wandb_project": "logging.wandb",
    "warmup": "schedule.warmup_ratio",
}


@dataclass(frozen=True)
class _Unknown:
    """An unknown key, and what could have stood there."""

    word: str
    prefix: str
    fields: list[str]
    every: list[str]
    registry: Registry | None


Guess = tuple[str, list[str]]


def unknown_key(keys: tuple[str | int, ...], plain: Any, every: list[str]) -> Guess:
    """What to say of an unknown key, and the keys it may have been meant to be.

    Args:
        plain: the recipe as written.
        every: the dotted keys it could hold.
    """
    section_keys = keys[:-1]
    slot, value = slot_at(section_keys, plain), value_at(section_keys, plain)
    section = slot.section(value) if slot is not None else None
    unknown = _Unknown(
        word=str(keys[-1]),
        prefix=f"{dotted(section_keys)}." if section_keys else "",
        fields=list(section.model_fields) if section is not None else [],
        every=every,
        registry=slot.registry if slot is not None else None,
    )
    of_method = f" of {value['method']}" if unknown.registry is not None else ""
    for guess in GUESSES:
        if found := guess(unknown):
            return f"unknown key{of_method}; {found[0]}", found[1]
    fields = f"; known keys: {', '.join(unknown.fields)}" if unknown.fields else ""
    return f"unknown key{of_method}{fields}", []


def _never_a_key(unknown: _Unknown) -> Guess | None:
    word = unknown.word
    if "trust" in word and "remote" in word:
        return "a recipe must not run code, so this is only the command-line flag --trust-remote-code", []
    if word == "<<":
        return "merge keys are not part of a recipe, use `extends: other.yaml`", []
    if word == "extends":
        return "extends stands at the top of a recipe, not inside a section", []
    return None


def _misplaced_section(unknown: _Unknown) -> Guess | None:
    word = unknown.word
    if unknown.prefix and word in Recipe.model_fields:
        return f"`{word}:` is a section of its own, begin it at the left margin", [word]
    if "." in word and f"{unknown.prefix}{word}" in unknown.every:
        remedy = "dots work on the command line only; in a file, indent the last part below its section"
        return remedy, [f"{unknown.prefix}{word}"]
    return None


def _misspelt(unknown: _Unknown, cutoff: float = 0.75) -> Guess | None:
    meant = SYNONYMS.get(unknown.word.lower())
    near = [meant] if meant in unknown.fields else _near(unknown.word, unknown.fields, cutoff)
    return _did_you_mean(near, [f"{unknown.prefix}{name}" for name in near])


def _secret(unknown: _Unknown) -> Guess | None:
    if not SECRET.fullmatch(unknown.word):
        return None
    return "secrets do not belong in a recipe, export them in the environment (HF_TOKEN, WANDB_API_KEY)", []


def _of_another_section(unknown: _Unknown) -> Guess | None:
    found = [key for key in unknown.every if key.rpartition(".")[2] == unknown.word and "." in key]
    return (f"write it as {listed(found[:3], 'or')}", found) if found else None


def _of_another_toolkit(unknown: _Unknown) -> Guess | None:
    meant = FOREIGN_KEYS.get(unknown.word.lower())
    return _did_you_mean([meant], [meant]) if meant else None


def _of_another_method(unknown: _Unknown) -> Guess | None:
    registry = unknown.registry
    if registry is None:
        return None
    owners = [
        name for name in registry.names() if unknown.word in registry.declared(name).config.model_fields
    ]
    if not owners:
        return None
    remedy = f"choose another method, or remove the key (~{unknown.prefix}{unknown.word} on the command line)"
    return f"it is a setting of {listed(owners, 'and')}: {remedy}", []


def _far_misspelt(unknown: _Unknown) -> Guess | None:
    return _misspelt(unknown, 0.6)


def _misspelt_of_another_section(unknown: _Unknown) -> Guess | None:
    near = _near(unknown.word, {key.rpartition(".")[2] for key in unknown.every}, 0.8)
    found = [key for key in unknown.every if key.rpartition(".")[2] in near]
    return _did_you_mean(found[:3], found)


GUESSES: tuple[Callable[[_Unknown], Guess | None], ...] = (
    _never_a_key,
    _misplaced_section,
    _misspelt,
    _secret,
    _of_another_section,
    _of_another_toolkit,
    _of_another_method,
    _far_misspelt,
    _misspelt_of_another_section,
)


def _did_you_mean(shown: list[str], keys: list[str]) -> Guess | None:
    return (f"did you mean {listed(shown, 'or')}?", keys) if shown else None


def _near(word: str, known: Iterable[str], cutoff: float) -> list[str]:
    return get_close_matches(word.lower(), sorted(known), n=2, cutoff=cutoff) if len(word) <= 60 else []
