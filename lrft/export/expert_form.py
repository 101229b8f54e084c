"""How PEFT holds adapters of experts: those of all experts of a block as one, on the tensor of three dimensions.

Of E experts with factors A_e (r, in) and B_e (out, r), `lora_A` (E r, in) has the rows of one expert after another, and
`lora_B` (out, r E) has for each component the columns of all experts. Two tensors of one block are wrapped one in the
other: what PEFT meets first stands inside, as `base_layer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from lrft.core.adapted import adapted
from lrft.core.peft import LORA_NAMES, lora_keys
from lrft.model.apart import DOWN, Apart, first_name
from lrft.model.causal_lm import CausalLM
from lrft.model.experts import paths_apart
from lrft.model.trained import base_parameters
from lrft.registry.json import Json

SiteForm: TypeAlias = tuple[dict[str, Tensor], dict[str, Json]]
"""PEFT's tensor names and values and the config's keys at one site."""

EXPERT_NAMES = {"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}


def stacked(
    model: CausalLM, forms: Mapping[str, SiteForm]
) -> tuple[dict[str, SiteForm], dict[str, str]] | None:
    """The forms with those of experts in one for each tensor, and tensor -> path that it stands under in PEFT's files.

    Experts of the tensor that have no adapter get one that is zero. None where PEFT has no such form: it has plain
    LoRA alone, and no base weights of experts that train beside.
    """
    apart = {path: module for path, module in model.hf.named_modules() if isinstance(module, Apart)}
    if not apart:
        return dict(forms), {}
    inside = paths_apart(model.hf)
    if any(name.startswith(inside) for name, _ in base_parameters(model)):
        return None
    # PEFT has no dropout on tensors, and refuses configurations with one; no function of a trained adapter has any.
    found = {
        name: (form[0], form[1] if "lora_dropout" not in form[1] else {**form[1], "lora_dropout": 0.0})
        for name, form in forms.items()
        if not name.startswith(inside)
    }
    places: dict[str, str] = {}
    for path, module in apart.items():
        here = {}
        for name in (first_name(module), DOWN):
            held = [forms.get(f"{path}.{number}.{name}") for number in range(module.num_experts)]
            known = [form for form in held if form is not None]
            if known and not all(map(_is_plain, known)):
                return None
            if known:
                here[f"{path}.{name}"] = _stack(held, known)
        places |= {name: path + ".base_layer" * depth for depth, name in enumerate(reversed(here))}
        found |= here
    return found, places


def _is_plain(form: SiteForm) -> bool:
    tensors, keys = form
    return tensors.keys() == set(LORA_NAMES.values()) and keys.keys() == lora_keys(1, 1).keys()


def _stack(held: list[SiteForm | None], known: list[SiteForm]) -> SiteForm:
    """One form of those of all experts: where ranks or scales differ, of the highest rank and with its scale in B."""
    keys = {**known[0][1], "lora_dropout": 0.0}
    same = all({**form[1], "lora_dropout": 0.0} == keys for form in known)
    rank = max(int(str(form[1]["r"])) for form in known)
    A, B = (known[0][0][LORA_NAMES[leaf]] for leaf in "AB")
    As, Bs = [], []
    for form in held:
        down, up = A.new_zeros(rank, A.shape[1]), B.new_zeros(B.shape[0], rank)
        if form is not None:
            own = int(str(form[1]["r"]))
            down[:own] = form[0][LORA_NAMES["A"]]
            up[:, :own] = form[0][LORA_NAMES["B"]] * (1.0 if same else _scale(form[1]))
        As.append(down)
        Bs.append(up)
    tensors = {LORA_NAMES["A"]: torch.cat(As), LORA_NAMES["B"]: torch.stack(Bs, dim=-1).flatten(1)}
    return tensors, keys if same else lora_keys(rank, float(rank))


def _scale(keys: Mapping[str, Json]) -> float:
    rank, alpha = float(str(keys["r"])), float(str(keys["lora_alpha"]))
    return alpha / (rank**0.5 if keys["use_rslora"] else rank)


def target_parameters(model: CausalLM, names: list[str]) -> list[str]:
    """Last two parts of the names of tensors of experts where they say it all, whole names otherwise; sorted."""
    there = {
        f"{path}.{name}"
        for path, module in model.hf.named_modules()
        if isinstance(module, Apart)
        for name in (first_name(module), DOWN)
    }
    ends = {".".join(name.split(".")[-2:]) for name in names}
    told = {name for name in there if ".".join(name.split(".")[-2:]) in ends}
    return sorted(ends) if told == set(names) else sorted(names)


def on_experts(model: CausalLM) -> str:
    """What is said of an adapter behind its method: empty where it is on no expert."""
    inside = paths_apart(model.hf)
    there = inside and any(name.startswith(inside) for name, _ in adapted(model.hf))
    return " on experts" if there else ""


def taken_for_experts(model: CausalLM) -> list[str]:
    """Adapted layers by last name that PEFT would look for in the experts: it maps their names onto fused tensors."""
    inside = paths_apart(model.hf)
    fused = inside or any(p.ndim == 3 and ".experts." in name for name, p in model.hf.named_parameters())
    outside = [name for name, _ in adapted(model.hf) if not (inside and name.startswith(inside))]
    return sorted({name.rpartition(".")[2] for name in outside} & EXPERT_NAMES) if fused else []
