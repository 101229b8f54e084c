"""README.md of an adapter folder and of a merged model; a path of this machine stands in neither."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml

from lrft import __version__
from lrft.export.fidelity import Fidelity
from lrft.export.record import Exported
from lrft.export.targets import GGUF, OLLAMA, PEFT
from lrft.model.origin import hub_id, public_name
from lrft.recipe.embedding_clashes import embeds
from lrft.recipe.resolved import resolved
from lrft.recipe.schema import Recipe
from lrft.registry.json import Json, to_section

ADAPTER = """# {title}

{method} for `{base}`, trained with lrft {version} for {steps} steps.

- quantization of the base in training: {quantization}
- trainable parameters: {trainable:,}
- final training loss: {loss}
{positions}
The exact recipe is in `recipe.yaml`.
"""
MERGED = """# {title}

`{base}` with a trained {method} merged into its weights by lrft {version}: {what}.

- quantization of the base in training: {quantization}
- merged onto: the {onto} weights
- precision: {dtype}, rounding: {rounding}
- compared with the adapter on {rows} rows of {rows_from}: KL divergence {kl} nats per token, loss difference {loss}

All figures are in `fidelity.json`. The recipe, without the paths of the machine it ran on, is in `recipe.yaml`.
"""

EXPORTED = """# {title}

{method} for `{base}`, trained with lrft {version} for {steps} steps and written for {target}.

- quantization of the base in training: {quantization}
{figures}
All figures are in `fidelity.json`. The recipe, without the paths of the machine it ran on, is in `recipe.yaml`.
"""


PATHS = ("name", "tokenizer", "adapter", "source", "adapters", "tuned")  # keys of a recipe that hold paths


def adapter_card(recipe: Recipe, record: Mapping[str, Json], config: Mapping[str, Json] | None) -> str:
    """The card of an adapter with PEFT's `config`, or of one under lrft's own names."""
    method = _method(recipe)
    family = method.split()[0] if config is None else str(config["peft_type"]).lower()
    front = _front(recipe, "lrft" if config is None else "peft", "adapter", [family])
    return front + ADAPTER.format(
        title=record.get("name", "adapter"),
        method=method,
        base=public_name(recipe.model.name),
        version=__version__,
        steps=record.get("step"),
        quantization=recipe.quantization.method,
        trainable=record.get("trainable", 0),
        loss=record.get("loss"),
        positions=_lines([*base_told(recipe), *tokens_told(recipe, config)]),
    )


def merged_card(recipe: Recipe, record: Fidelity, title: str) -> str:
    """The card of a merged model with this fidelity record."""
    library, what = "transformers", "a plain transformers model"
    if "file" in record:
        library, what = GGUF, f"`{record['file']}`, for llama.cpp and what is made of it"
    return _front(recipe, library, "finetune", []) + MERGED.format(
        title=title,
        what=what,
        base=public_name(recipe.model.name),
        method=_method(recipe),
        version=__version__,
        quantization=recipe.quantization.method,
        onto=record["onto"],
        dtype=_precision(record),
        rounding=record["rounding"] or "none",
        rows=record["rows"],
        rows_from=record["rows_from"] or "no data",
        kl=_figure(record.get("kl_mean")),
        loss=_figure(record.get("loss_difference")),
    )


def exported_card(recipe: Recipe, result: Mapping[str, Json], record: Exported) -> str:
    """The card of what was written for another program."""
    target, relation = record["target"], "finetune" if record.get("merged") else "adapter"
    library = target if target in (GGUF, OLLAMA) else PEFT
    return _front(recipe, GGUF if library == OLLAMA else library, relation, [target]) + EXPORTED.format(
        title=record["run"],
        method=_method(recipe),
        base=public_name(recipe.model.name),
        version=__version__,
        steps=result.get("step", "some"),
        target=target,
        quantization=recipe.quantization.method,
        figures=_lines([*_exported_figures(record), *record["told"]]),
    )


def recipe_to_share(recipe: Recipe) -> str:
    """The recipe as YAML text with the base by its hub id where it is known, and of every other path its last part."""
    plain = to_section(_without_paths(recipe.model_dump(mode="json")))
    if recipe.model.name.startswith("/"):
        plain = {**plain, "model": {**to_section(plain["model"]), "name": public_name(recipe.model.name)}}
    return resolved(Recipe.model_validate(plain))


def _front(recipe: Recipe, library: str, relation: str, tags: list[str]) -> str:
    """The YAML block that the hub reads; without `base_model` where the base has no hub id."""
    base = hub_id(recipe.model.name)
    named = {} if base is None else {"base_model": base}
    lineage = [] if base is None else [f"base_model:{relation}:{base}"]
    keys = {
        **named,
        "library_name": library,
        "pipeline_tag": _pipeline(recipe),
        "tags": [*lineage, *tags, "transformers"] if library != "transformers" else [*lineage, "lrft"],
    }
    return f"---\n{yaml.safe_dump(keys, sort_keys=False)}---\n\n"


def _pipeline(recipe: Recipe) -> str:
    """What the hub offers the model for."""
    if embeds(recipe.objective.method):
        return "feature-extraction"
    return "text-generation" if recipe.model.head is None else "text-classification"


def base_told(recipe: Recipe) -> list[str]:
    """What the base must be loaded with, since an adapter does not hold it; nothing where it is as published."""
    scaling, context = recipe.model.rope_scaling, recipe.model.context
    said = "" if scaling is None else f" rope scaling {scaling.type} by {scaling.factor:g}"
    said += "" if context is None else f" {'and ' if said else ''}a context of {context} positions"
    return [f"the base has to be loaded with{said}, as in training"] if said else []


def tokens_told(recipe: Recipe, config: Mapping[str, Json] | None) -> list[str]:
    """Which tokens are new, and what a base without rows for them is to be given before PEFT loads the adapter."""
    if recipe.model.add_tokens is None:
        return []
    texts = ", ".join(map(repr, recipe.model.add_tokens.texts))
    said = [f"new tokens, which the tokenizer of this folder has: {texts}"]
    ids = next(iter(to_section(config["trainable_token_indices"]).values())) if config else None
    if not isinstance(ids, list):
        return said
    rows = int(str(ids[-1])) + 1
    resize = f"`model.resize_token_embeddings({rows}, mean_resizing=False)`"
    return [*said, f"a base with fewer rows than {rows} takes {resize} before it takes the adapter"]


def _exported_figures(record: Exported) -> list[str]:
    """What the file is written in, and how far it is from the run; nothing of the run's own numbers."""
    if "dtype" not in record:
        return ["the numbers of the run, as they are"]
    rows = f"{record.get('rows', 0)} rows of {record.get('rows_from') or 'no data'}"
    kl, loss = _figure(record.get("kl_mean")), _figure(record.get("loss_difference"))
    return [
        f"precision of the file: {record['dtype']}",
        f"relative error of the change: {_figure(record.get('relative_error'))}",
        f"compared with the run on {rows}: KL divergence {kl} nats per token, loss difference {loss}",
    ]


def _lines(told: Iterable[str]) -> str:
    return "".join(f"- {line}\n" for line in told)


def _precision(record: Fidelity) -> str:
    """What the weights of a merged model are in."""
    if (storage := record.get("requantized")) is None:
        return str(record["dtype"])
    rank = record["kept_rank"]
    kept = (
        f"; with the adapter of rank {rank} in `remainder/`, which the figures below include" if rank else ""
    )
    return f"{record['layers_in_bits']} layers in {storage}, everything else in {record['dtype']}{kept}"


def _method(recipe: Recipe) -> str:
    return f"{recipe.adapter.method} adapter" if recipe.adapter is not None else "trained weights"


def _figure(value: float | None) -> str:
    return "not measured" if value is None else json.dumps(float(f"{value:.3g}"))


def _without_paths(value: Json, key: str = "") -> Json:
    """The last part of every path; texts that begin with a slash, such as a system message, are no paths."""
    if isinstance(value, dict):
        return {name: _without_paths(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_paths(inner, key) for inner in value]
    if key in PATHS and isinstance(value, str) and value.startswith("/"):
        return Path(value).name or value
    return value
