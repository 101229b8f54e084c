"""What to type next: how a folder is loaded, served, or written for a server."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrft.export.heard import MODEL
from lrft.export.plain_form import CONFIG
from lrft.export.record import Exported
from lrft.export.targets import GGUF, OLLAMA, PLAIN, VLLM
from lrft.files.json import read_object
from lrft.files.made_records import AdapterConfig
from lrft.files.records import ModelConfig
from lrft.recipe.embedding_clashes import embeds
from lrft.recipe.schema import Recipe
from lrft.registry.errors import DamagedFile


def typed(word: Path | str) -> str:
    """A word of a command as a shell takes it for one, whatever it holds."""
    return shlex.quote(str(word))


def how_to_load(path: Path) -> str:
    """The line that loads or serves a model folder."""
    if (path / MODEL).is_file():
        return f"llama-server -m {typed(path / MODEL)} --jinja"
    made = read_object(path / "config.json", ModelConfig, within=path).get("architectures") or []
    scores = any(name.endswith("ForSequenceClassification") for name in made)
    kind = "AutoModelForSequenceClassification" if scores else "AutoModelForCausalLM"
    return f"transformers: {kind}.from_pretrained({str(path)!r})"


def how_to_serve(path: Path, record: Exported) -> str:
    """The line that serves an exported folder."""
    target, base, run = record["target"], _config(path).get("base_model_name_or_path"), record["run"]
    if not isinstance(base, str) or not Path(base).is_dir():  # by its path where it is on this machine
        base = record["base"]
    if target == VLLM:
        flags = (
            f"--enable-{PLAIN} --max-{PLAIN}-rank {record['rank']} --{PLAIN}-modules {typed(f'{run}={path}')}"
        )
        return f"vllm serve {typed(base)} {flags}"
    if target == OLLAMA:
        return f"ollama create {typed(run)} -f {typed(path / 'Modelfile')}"
    if target == GGUF and record.get("merged"):
        return how_to_load(path)
    if target == GGUF:
        return f"llama-server -m BASE.gguf --{PLAIN} {typed(path / 'adapter.gguf')} --jinja"
    kind, more = "CausalLM", ""
    if (labels := record.get("labels")) is not None:
        kind, more = "SequenceClassification", f", num_labels={len(labels)}"
    loaded = f"AutoModelFor{kind}.from_pretrained({base!r}{more})"
    return f"peft: PeftModel.from_pretrained({loaded}, {str(path)!r})"


def has_plain_form(recipe: Recipe, adapter: Path) -> bool:
    """Whether nothing says already that a server with plain adapters could not take the run."""
    model = recipe.model
    if model.head is not None or embeds(recipe.objective.method) or model.add_tokens is not None:
        return False
    only = recipe.adapter is not None and recipe.trainable.weights == "adapter" and model.experts == "whole"
    return only and not _config(adapter).get("fan_in_fan_out")  # layers that store (in, out)


def _config(folder: Path) -> Mapping[str, Any]:
    """The adapter_config.json of a folder; empty where there is none that can be read."""
    try:
        return read_object(folder / CONFIG, AdapterConfig, within=folder)
    except DamagedFile:
        return {}
