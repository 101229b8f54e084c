"""What an optimizer is told of the base weights that train: roles, heads, and how they are stored."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from lrft.core.in_layer import in_layer
from lrft.core.params import ParamInfo
from lrft.model.causal_lm import SCORE, CausalLM
from lrft.model.experts import paths_apart
from lrft.model.hf import head_of
from lrft.model.sites import is_transposed, linear_shape

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
QUERIES_OR_KEYS = re.compile(r"\.[qk]_proj\.weight$")


def base_infos(model: CausalLM, trained: list[tuple[str, nn.Parameter]]) -> list[ParamInfo]:
    """Base weights that train, by the names they have in the base model, with their roles and how they are stored."""
    if not trained:
        return []
    embedding = model.hf.get_input_embeddings().get_parameter("weight")
    head = head_of(model.hf).get_parameter("weight")
    roles = {id(head): "head", id(embedding): "embedding"}  # tied, it is an embedding
    roles |= {id(model.hf.get_parameter(f"{SCORE}.weight")): "head"} if model.labels else {}
    owners = {
        id(parameter): module
        for module in model.hf.modules()
        for parameter in module.parameters(recurse=False)
    }
    experts, found = paths_apart(model.hf), []
    hidden = model.hf.config.get_text_config().hidden_size
    for name, parameter in trained:
        owner, block = owners[id(parameter)], in_layer(name)
        found.append(
            ParamInfo(
                name,
                parameter,
                roles.get(id(parameter)) or _role(owner, parameter, hidden),
                block=block.path if block else "",
                sparse=bool(experts) and name.startswith(experts),
                head_rows=_head_rows(model, name, parameter),
                transposed=parameter.ndim > 1 and _is_turned(owner, parameter, hidden),
            )
        )
    return found


def _role(owner: nn.Module, parameter: nn.Parameter, hidden: int) -> str:
    """What a weight is by the module that holds it.

    Experts, and gates by heads, are matrices in one tensor. Routers are linear maps that no linear layer holds.
    """
    if linear_shape(owner) and parameter.ndim == 2:
        return "matrix"
    if parameter.ndim == 3 and min(parameter.shape[1:]) > 1 and not isinstance(owner, CONVOLUTIONS):
        return "matrices"
    routes = (
        parameter.ndim == 2 and parameter.shape[1] == hidden and parameter is owner._parameters.get("weight")
    )
    return "matrix" if routes and not isinstance(owner, nn.Embedding) else "vector"


def _is_turned(owner: nn.Module, parameter: nn.Parameter, hidden: int) -> bool:
    """Whether a module multiplies by its weight as (in, out)."""
    if parameter.ndim == 2:
        return is_transposed(owner) and parameter is owner._parameters.get("weight")
    told = getattr(owner, "is_transposed", None)
    if told is not None:
        return bool(told)
    first = next(p for p in owner._parameters.values() if p is not None and p.ndim == 3)
    return first.shape[1] == hidden != first.shape[2]  # what comes first takes hidden states


def _head_rows(model: CausalLM, name: str, parameter: nn.Parameter) -> int:
    """Rows of a head of queries or keys; 0 of what is neither, or holds them beside other rows."""
    if not QUERIES_OR_KEYS.search(name) or parameter.ndim != 2:
        return 0
    attention: Any = model.hf.get_submodule(name.rsplit(".", 2)[0])
    config = model.hf.config.get_text_config()
    # Where positions are turned in a part of a head alone, the configuration's `head_dim` may be that part's.
    rows = getattr(attention, "qk_head_dim", None) or getattr(attention, "head_dim", None)
    rows = rows or getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(rows) if len(parameter) % rows == 0 else 0
