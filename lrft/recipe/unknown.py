"""What an unknown key was meant to be: misspelt, of another section or method, or another toolkit's word."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from lrft.recipe.fields import Slot, known_keys, listed, slot_at, value_at
from lrft.recipe.tree import dotted

SECRET = re.compile(r"(.*_)?(token|password|passwd|secret|api_?key|access_?key|credentials?)", re.IGNORECASE)

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


def unknown_key(keys: tuple[str | int, ...], plain: Any) -> tuple[str, list[str]]:
    """What to say of an unknown key of the recipe `plain`, and the keys it may have been meant to be."""
    word = str(keys[-1])
    if "trust" in word and "remote" in word:
        flag = "--trust-remote-code"
        return f"is not a recipe key, since a recipe must not run code; use the command-line flag {flag}", []
    if SECRET.fullmatch(word):
        variables = "HF_TOKEN, WANDB_API_KEY"
        return f"secrets do not belong in a recipe; export them in the environment ({variables})", []
    if word == "<<":
        return "merge keys are not part of a recipe; use `extends: other.yaml`", []
    if word == "extends":
        return "extends is written at the top of a recipe, not inside a section", []
    return _meant(word, keys[:-1], plain)


def _meant(word: str, section_keys: tuple[str | int, ...], plain: Any) -> tuple[str, list[str]]:
    slot = slot_at(section_keys, plain)
    value = value_at(section_keys, plain)
    section = slot.section(value) if slot is not None else None
    fields = list(section.model_fields) if section is not None else []
    prefix = f"{dotted(section_keys)}." if section_keys else ""
    every = [".".join(keys) for keys in known_keys(plain)]
    head = f"unknown key{_of_method(slot, value)}"

    if word in every:
        remedy = "dots work on the command line only; in a file, indent the last part below its section"
        return f"{head}; {remedy}", [word]
    if word in ("name", "type", "kind") and "method" in fields:
        return f"{head}; did you mean method?", [f"{prefix}method"]
    if near := _near(word, fields, 0.75):
        return f"{head}; did you mean {listed(near, 'or')}?", [f"{prefix}{name}" for name in near]
    if elsewhere := [key for key in every if key.rpartition(".")[2] == word and "." in key]:
        return f"{head}; write it as {listed(elsewhere[:3], 'or')}", elsewhere
    if word.lower() in FOREIGN_KEYS:
        return f"{head}; did you mean {FOREIGN_KEYS[word.lower()]}?", [FOREIGN_KEYS[word.lower()]]
    if owners := _owners(word, slot):
        remedy = f"choose another method, or remove the key (~{prefix}{word} on the command line)"
        return f"{head}; it is a setting of {listed(owners, 'and')}: {remedy}", []
    if near := _near(word, fields, 0.6):
        return f"{head}; did you mean {listed(near, 'or')}?", [f"{prefix}{name}" for name in near]
    if near := _near(word, {key.rpartition(".")[2] for key in every}, 0.8):
        found = [key for key in every if key.rpartition(".")[2] in near]
        return f"{head}; did you mean {listed(found[:3], 'or')}?", found
    return (f"{head}; known keys: {', '.join(fields)}" if fields else head), []


def _of_method(slot: Slot | None, value: Any) -> str:
    return f" of {value['method']}" if slot is not None and slot.registry is not None else ""


def _near(word: str, known: Iterable[str], cutoff: float) -> list[str]:
    return get_close_matches(word.lower(), sorted(known), n=2, cutoff=cutoff) if len(word) <= 60 else []


def _owners(word: str, slot: Slot | None) -> list[str]:
    """The other methods of the same axis that have this setting."""
    if slot is None or slot.registry is None:
        return []
    registry = slot.registry
    return [name for name in registry.names() if word in registry.declared(name).config.model_fields]
