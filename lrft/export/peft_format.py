"""The `adapter/` folder: what PEFT, vLLM and the hub expect, written from the adapter's own names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from lrft import __version__
from lrft.core.adapted import Adapted, adapted
from lrft.core.frozen import Changed
from lrft.model.causal_lm import CausalLM
from lrft.model.load import DTYPES
from lrft.model.trained import base_parameters, frozen_layers, trained_tensors

PREFIX = "base_model.model."
LORA_NAMES = {"A": "lora_A.weight", "B": "lora_B.weight"}
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

{method} for `{base}`, trained with lrft {version} for {steps} steps.

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
    dtype = DTYPES[(recipe.adapter.dtype if recipe.adapter is not None else None) or recipe.model.dtype]
    forms = {name: _site_form(module) for name, module in sites}
    common_part = {} if model.shared is None else model.shared.peft_tensors()
    whole = common_part is not None and bool(forms) and all(form is not None for form in forms.values())
    takes_transposed = all(module.adapter.peft_transposed for _, module in sites)
    if not whole or (model.transposed and not takes_transposed):
        return _own_form(model, dtype), None
    tensors = {
        f"{PREFIX}{site}.{name}": tensor
        for site, form in forms.items()
        if form is not None
        for name, tensor in form[0].items()
    }
    beside, modules = _base_weights(model)
    keys = {site: form[1] for site, form in forms.items() if form is not None}
    section = type(sites[0][1].adapter).peft_config(
        recipe.adapter, any(module.start is not None for _, module in sites)
    )
    common = section if section is not None and section in keys.values() else next(iter(keys.values()))
    patterns = _patterns(keys, common)
    if patterns is None:
        return _own_form(model, dtype), None
    config = {**_shared_keys(model, recipe, sites), **common, **patterns}
    if any(name.endswith(".bias") for name in beside):
        config["bias"] = "all"
    if takes_transposed:
        config["fan_in_fan_out"] = bool(model.transposed)
    if modules:
        config["modules_to_save"] = modules
    beside |= {f"{PREFIX.partition('.')[0]}.{name}": tensor for name, tensor in (common_part or {}).items()}
    cast = {k: t.detach().to("cpu", dtype).contiguous() for k, t in {**tensors, **beside}.items()}
    return cast, config


def _base_weights(model: CausalLM) -> tuple[dict[str, Tensor], list[str]]:
    """The base weights that train under PEFT's names, and the modules that PEFT is to replace.

    Biases stand alone, in adapted layers too. Of a module of which anything else trains all goes along, since PEFT
    replaces modules and not tensors.
    """
    trained, sites = dict(base_parameters(model)), {name for name, _ in adapted(model.hf)}
    modules = sorted({name.rpartition(".")[0] for name in trained if not name.endswith(".bias")})
    found: dict[str, Tensor] = {}
    for module in modules:
        for leaf, parameter in model.hf.get_submodule(module).named_parameters(recurse=False):
            found[f"{PREFIX}{module}.{leaf}"] = parameter
    for name, parameter in trained.items():
        module, _, leaf = name.rpartition(".")
        found[f"{PREFIX}{module}.{'base_layer.' if module in sites else ''}{leaf}"] = parameter
    return found, modules


def _own_form(model: CausalLM, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every trained tensor under lrft's name; whole numbers (a seed) stay whole."""
    own = {name: tensor.detach().cpu() for name, tensor in trained_tensors(model).items()}
    return {k: (t.to(dtype) if t.is_floating_point() else t).contiguous() for k, t in own.items()}


def _site_form(module: Adapted) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """PEFT's tensor names and values and the config's keys at one site; None where PEFT has no such form.

    What restarts added to the base goes along as further rows of A and columns of B.
    """
    adapter = module.adapter
    if isinstance(module.base, Changed):
        if "linear_delta" not in adapter.provides or module.base.A is None or module.base.B is None:
            return None
        A, B = adapter.factors(module.start)
        A, B = torch.cat([A, module.base.A]), torch.cat([B, module.base.B], dim=1)
        rank = A.shape[0]
        plain = {"peft_type": "LORA", "r": rank, "lora_alpha": float(rank), "lora_dropout": 0.0}
        return {LORA_NAMES["A"]: A, LORA_NAMES["B"]: B}, {**plain, "use_rslora": False}
    keys = adapter.peft_keys(module.start is not None)
    if keys is None:
        return None
    names = adapter.peft_names or LORA_NAMES
    return {names[name]: tensor for name, tensor in adapter.peft_tensors(module.start).items()}, keys


def _shared_keys(model: CausalLM, recipe: Any, sites: list[Any]) -> dict[str, Any]:
    return {
        "base_model_name_or_path": recipe.model.name,
        "revision": recipe.model.revision or getattr(model.hf.config, "_commit_hash", None),
        "task_type": "CAUSAL_LM",
        "bias": "none",
        "inference_mode": True,
        "target_modules": _target_modules(model, [name for name, _ in sites]),
    }


def _target_modules(model: CausalLM, names: list[str]) -> list[str]:
    """Last parts of the module names where they say it all (what servers read), full paths otherwise; sorted."""
    leaves = {name.rpartition(".")[2] for name in names}
    frozen = {name for name, _, _ in frozen_layers(model)}
    told = {name for name in frozen if name.rpartition(".")[2] in leaves}
    return sorted(leaves) if told == set(names) else sorted(names)


def _patterns(keys: dict[str, dict[str, Any]], common: dict[str, Any]) -> dict[str, Any] | None:
    """Sites whose rank or alpha is not the common one, under PEFT's `rank_pattern` and `alpha_pattern`.

    None where PEFT cannot say it: it has these patterns for LoRA alone.
    """
    if "lora_alpha" not in common:
        return {} if all(own == common for own in keys.values()) else None
    ranks = {name: own["r"] for name, own in keys.items() if own["r"] != common["r"]}
    alphas = {
        name: own["lora_alpha"] for name, own in keys.items() if own["lora_alpha"] != common["lora_alpha"]
    }
    return {k: v for k, v in (("rank_pattern", ranks), ("alpha_pattern", alphas)) if v}


def _card(recipe: Any, record: dict[str, Any], config: dict[str, Any] | None) -> str:
    method = f"{recipe.adapter.method} adapter" if recipe.adapter is not None else "trained weights"
    return CARD.format(
        base=recipe.model.name,
        library="lrft" if config is None else "peft",
        family=method.split()[0] if config is None else config["peft_type"].lower(),
        title=record.get("name", "adapter"),
        method=method,
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
