"""The `adapter/` folder: what PEFT, vLLM and the hub expect, written from the adapter's own names."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from torch import Tensor

from lrft.core.adapted import Adapted, adapted
from lrft.core.changed import Changed
from lrft.core.peft import LORA_NAMES, Together, lora_keys
from lrft.export.card import adapter_card
from lrft.export.expert_form import SiteForm, stacked, taken_for_experts, target_parameters
from lrft.export.peft_config import Keys, patterns, shared_keys
from lrft.export.rounding import rounded
from lrft.export.token_rows import loses_bias, token_rows
from lrft.model.batching import stock_attention
from lrft.model.causal_lm import CausalLM
from lrft.model.finite_file import EARLIER, finite_file
from lrft.model.load import DTYPES
from lrft.model.score_head import lacks_classifier
from lrft.model.trained import BASE, base_parameters, trained_tensors
from lrft.model.units import hides_units, of_whole
from lrft.recipe.schema import Recipe
from lrft.registry.json import Json

PREFIX = "base_model.model."


def adapter_files(model: CausalLM, recipe: Recipe, record: Mapping[str, Json]) -> dict[str, bytes]:
    """File name -> content of the adapter folder, tokenizer left out.

    With a PEFT form: `adapter_model.safetensors` and `adapter_config.json`, loadable by `PeftModel.from_pretrained`.
    Without one: `adapter.safetensors` under lrft's own names. Tensors are in the precision the adapter computed in.
    """
    tensors, config = peft_form(model, recipe)
    name = "adapter_model.safetensors" if config is not None else "adapter.safetensors"
    files = {name: finite_file(tensors, EARLIER, {"format": "pt"})}
    if config is not None:
        files["adapter_config.json"] = (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
    files["README.md"] = adapter_card(recipe, record, config).encode()
    return files


def peft_form(model: CausalLM, recipe: Recipe) -> tuple[dict[str, Tensor], Keys | None]:
    """The adapter's tensors under PEFT's names and PEFT's config, or under ours and None."""
    sites = list(adapted(model.hf))
    dtype = written_dtype(recipe, sites)
    form = type(sites[0][1].adapter).peft_form() if sites else None
    if form is not None and form.together is not None:
        return _form_of_all(model, recipe, sites, form.together, dtype)
    forms = _forms(model, sites)
    common_part = {} if model.shared is None else model.shared.peft_tensors()
    taking = [form for _, module in sites if (form := type(module.adapter).peft_form()) is not None]
    turned = bool(model.transposed) and not all(form.transposed for form in taking)
    refused = turned or taken_for_experts(model) or lacks_classifier(model) or hides_units(model)
    if forms is None or common_part is None or refused:
        return _own_form(model, dtype), None
    by_site, places = forms
    tensors = _named(model, by_site, places, common_part)
    keys = {site: form[1] for site, form in by_site.items()}
    section = taking[0].keys(recipe.adapter, any(module.start is not None for _, module in sites))
    common = section if section in keys.values() else next(iter(keys.values()))
    differing = patterns(keys, common)
    rows = token_rows(model, str(common["peft_type"]), dtype)
    if differing is None or rows is None or loses_bias(model, str(common["peft_type"])):
        return _own_form(model, dtype), None
    extra, said = beside(model, {name for name, _ in sites}, str(common["peft_type"]))
    extra, said = extra | rows[0], {**said, **rows[1]}
    if places:
        sites = [(name, module) for name, module in sites if name in by_site]
        said["target_parameters"] = target_parameters(model, list(places))
    config = {**shared_keys(model, recipe, sites), **common, **differing, **said}
    fitted = taking[0].fitted(config, bool(model.transposed))
    if fitted is None:
        return _own_form(model, dtype), None
    unrounded = tuple(f".{form.names[name]}" for form in taking for name in form.unrounded)
    return _written(tensors, dtype, unrounded) | extra, fitted


def _named(
    model: CausalLM, by_site: dict[str, SiteForm], places: dict[str, str], common_part: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Every tensor under the name that PEFT has for it."""
    tensors = {
        f"{PREFIX}{places.get(site, site)}.{name}": tensor
        for site, form in by_site.items()
        for name, tensor in form[0].items()
    }
    tensors = of_whole(model, tensors, LORA_NAMES)
    return tensors | {f"{PREFIX.partition('.')[0]}.{name}": tensor for name, tensor in common_part.items()}


def _forms(
    model: CausalLM, sites: list[tuple[str, Adapted]]
) -> tuple[dict[str, SiteForm], dict[str, str]] | None:
    """The form of every site, and the paths of those that PEFT has elsewhere; None where it has not all of them."""
    forms = {name: form for name, module in sites if (form := _site_form(module)) is not None}
    return stacked(model, forms) if len(forms) == len(sites) > 0 else None


def _written(tensors: dict[str, Tensor], dtype: torch.dtype, unrounded: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors in `dtype`, those whose names end in one of `unrounded` in their own."""
    return {n: _cast(n, t, t.dtype if n.endswith(unrounded) else dtype) for n, t in tensors.items()}


def written_dtype(recipe: Recipe, sites: list[tuple[str, Adapted]]) -> torch.dtype:
    """The precision that the adapter is written in."""
    said = recipe.adapter.dtype if recipe.adapter is not None else None
    if said is None and any(module.adapter.wide for _, module in sites):
        return torch.float32
    return DTYPES[said or recipe.model.dtype]


def _form_of_all(
    model: CausalLM, recipe: Recipe, sites: list[tuple[str, Adapted]], together: Together, dtype: torch.dtype
) -> tuple[dict[str, Tensor], Keys | None]:
    """The form of a method that PEFT holds as one thing; it has none for base weights that train beside."""
    if any(base_parameters(model)) or model.new_rows is not None:
        return _own_form(model, dtype), None
    training = model.training
    model.eval()
    with stock_attention(model.hf), torch.no_grad():
        form = together([module.adapter for _, module in sites], model.hf)
    model.train(training)
    if form is None:
        return _own_form(model, dtype), None
    tensors, keys = form
    config = shared_keys(model, recipe, sites) | keys
    del config["target_modules"], config["bias"]
    return {name: _cast(name, tensor, dtype) for name, tensor in tensors.items()}, config


def _own_form(model: CausalLM, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every trained tensor under lrft's name; base weights, and whole numbers (a seed), stay in their own type."""
    own = trained_tensors(model)
    return {name: _cast(name, t, t.dtype if name.startswith(BASE) else dtype) for name, t in own.items()}


def _cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor on the CPU, cast unless it holds whole numbers.

    Raises:
        NumericalError: it is not finite, or beyond `dtype`.
    """
    if not tensor.is_floating_point():
        return tensor.detach().cpu().contiguous()
    return rounded(name, tensor, dtype, stochastic=False).contiguous()


def beside(model: CausalLM, sites: set[str], peft_type: str) -> tuple[dict[str, Tensor], Keys]:
    """Base weights that train beside the adapter, under PEFT's names in their own precision, and what to say of them.

    A tied head is the embedding: PEFT reads the weight under both names, and ties the two where its
    configuration can say so.
    """
    trained = dict(base_parameters(model))
    found: dict[str, Tensor] = {}
    keys: Keys = {}
    saved = {name.rpartition(".")[0] for name in trained if not name.endswith(".bias")}
    for module in saved:  # whole, since PEFT replaces modules and not tensors
        for leaf, parameter in model.hf.get_submodule(module).named_parameters(recurse=False):
            found[f"{PREFIX}{module}.{leaf}"] = _cast(f"{module}.{leaf}", parameter, parameter.dtype)
    for name, parameter in trained.items():
        if name.rpartition(".")[0] not in saved:
            found[peft_name(name, sites)] = _cast(name, parameter, parameter.dtype)
            keys["bias"] = "all"
    tied = _tied(model)
    if tied is not None and f"{tied[0]}.weight" in trained:
        found[f"{PREFIX}{tied[1]}.weight"] = found[f"{PREFIX}{tied[0]}.weight"].clone()
        if peft_type == "LORA":
            keys["ensure_weight_tying"] = True
        else:
            saved.add(tied[1])
    return found, {**keys, "modules_to_save": sorted(saved)} if saved else keys


def peft_name(name: str, sites: set[str]) -> str:
    """What PEFT calls a base parameter: the bias of an adapted layer stands beneath the adapter."""
    module, _, leaf = name.rpartition(".")
    return f"{PREFIX}{module}.base_layer.bias" if leaf == "bias" and module in sites else f"{PREFIX}{name}"


def _tied(model: CausalLM) -> tuple[str, str] | None:
    """Paths of the embedding and of the head that shares its weight; None where they are two."""
    embedding, head = model.hf.get_input_embeddings(), model.hf.get_output_embeddings()
    if head is None or head.weight is not embedding.weight:
        return None
    paths = {id(module): name for name, module in model.hf.named_modules()}
    return paths[id(embedding)], paths[id(head)]


def _site_form(module: Adapted) -> SiteForm | None:
    """PEFT's tensor names and values and the config's keys at one site; None where PEFT has no such form.

    What restarts added to the base goes along as further rows of A and columns of B.
    """
    adapter = module.adapter
    form = type(adapter).peft_form()
    if form is None:
        return None
    if not isinstance(module.base, Changed):
        if not form.holds(adapter):
            return None
        return form.tensors_of(adapter, module.start), form.keys_of(adapter, module.start is not None)
    factors = module.factors()
    if factors is None:
        return None
    A, B = factors
    return {LORA_NAMES["A"]: A, LORA_NAMES["B"]: B}, lora_keys(A.shape[0], float(A.shape[0]))
