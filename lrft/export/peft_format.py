"""The `adapter/` folder: what PEFT, vLLM and the hub expect, written from the adapter's own names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from lrft import __version__
from lrft.core.adapted import adapted
from lrft.model.attach import frozen_layers
from lrft.model.causal_lm import CausalLM
from lrft.model.load import DTYPES

PREFIX = "base_model.model."
CARD = """---
base_model: {base}
library_name: {library}
pipeline_tag: text-generation
tags:
- base_model:adapter:{base}
- {family}
- transformers
---

# {title}

{method} adapter for `{base}`, trained with lrft {version} for {steps} steps.

- quantization of the base in training: {quantization}
- trainable parameters: {trainable:,}
- final training loss: {loss}

The exact recipe is in `recipe.yaml`.
"""


def adapter_files(model: CausalLM, recipe: Any, record: dict[str, Any]) -> dict[str, bytes]:
    """File name -> content of the adapter folder, tokenizer left out.

    With a PEFT form: `adapter_model.safetensors` and `adapter_config.json`, loadable by `PeftModel.from_pretrained`.
    Without one: `adapter.safetensors` under lrft's own names. Tensors are in the precision the adapter computed in.
    """
    tensors, config = peft_form(model, recipe)
    name = "adapter_model.safetensors" if config is not None else "adapter.safetensors"
    files = {name: save(dict(sorted(tensors.items())), metadata={"format": "pt"})}
    if config is not None:
        files["adapter_config.json"] = (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
    files["README.md"] = _card(recipe, record, config).encode()
    return files


def peft_form(model: CausalLM, recipe: Any) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The adapter's tensors under PEFT's names and PEFT's config, or under ours and None."""
    sites = list(adapted(model.hf))
    cls = type(sites[0][1].adapter)
    config = cls.peft_config(recipe.adapter, any(module.start is not None for _, module in sites))
    dtype = DTYPES[recipe.adapter.dtype or recipe.model.dtype]
    tensors = {}
    for site, module in sites:
        own = module.adapter.state_dict() if config is None else module.adapter.peft_tensors(module.start)
        for name, tensor in own.items():
            key = f"{PREFIX}{site}.{cls.peft_names[name]}" if config is not None else f"{site}.{name}"
            tensors[key] = tensor.detach().to("cpu", dtype).contiguous()
    if config is not None:
        config = {**_shared_keys(model, recipe, sites), **config, **_patterns(sites, config)}
    return tensors, config


def _shared_keys(model: CausalLM, recipe: Any, sites: list[Any]) -> dict[str, Any]:
    return {
        "base_model_name_or_path": recipe.model.name,
        "revision": recipe.model.revision or getattr(model.hf.config, "_commit_hash", None),
        "task_type": "CAUSAL_LM",
        "bias": "none",
        "inference_mode": True,
        "fan_in_fan_out": bool(model.transposed),
        "target_modules": _target_modules(model, [name for name, _ in sites]),
    }


def _target_modules(model: CausalLM, names: list[str]) -> list[str]:
    """Last parts of the module names where they say it all (what servers read), full paths otherwise; sorted."""
    leaves = {name.rpartition(".")[2] for name in names}
    frozen = {name for name, _, _ in frozen_layers(model)}
    told = {name for name in frozen if name.rpartition(".")[2] in leaves}
    return sorted(leaves) if told == set(names) else sorted(names)


def _patterns(sites: list[Any], config: dict[str, Any]) -> dict[str, Any]:
    """Sites whose rank or alpha is not the section's, under PEFT's `rank_pattern` and `alpha_pattern`."""
    own = {
        name: module.adapter.peft_config(module.adapter.config, module.start is not None)
        for name, module in sites
    }
    ranks = {name: keys["r"] for name, keys in own.items() if keys["r"] != config["r"]}
    alphas = {
        name: keys["lora_alpha"] for name, keys in own.items() if keys["lora_alpha"] != config["lora_alpha"]
    }
    return {k: v for k, v in (("rank_pattern", ranks), ("alpha_pattern", alphas)) if v}


def _card(recipe: Any, record: dict[str, Any], config: dict[str, Any] | None) -> str:
    return CARD.format(
        base=recipe.model.name,
        library="lrft" if config is None else "peft",
        family=recipe.adapter.method if config is None else config["peft_type"].lower(),
        title=record.get("name", "adapter"),
        method=recipe.adapter.method,
        version=__version__,
        steps=record.get("step"),
        quantization=recipe.quantization.method,
        trainable=record.get("trainable", 0),
        loss=record.get("loss"),
    )


def write_adapter_folder(folder: Path, files: dict[str, bytes], tokenizer: Any) -> None:
    """Write the adapter folder whole: beside, then renamed over the old one."""
    import shutil

    scratch = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    for name, content in files.items():
        (scratch / name).write_bytes(content)
    tokenizer.save_pretrained(scratch)
    if folder.exists():
        shutil.rmtree(folder)
    scratch.rename(folder)
