"""What an optimizer is told of the base weights that train: roles, heads, and how they are stored."""

from __future__ import annotations

import re

from torch import nn

from lrft.core.params import ParamInfo
from lrft.model.causal_lm import SCORE, CausalLM
from lrft.model.experts import paths_apart
from lrft.model.hf import head_of
from lrft.model.sites import is_transposed, linear_shape

BLOCK = re.compile(r"^(.*?\.\d+)\.")
QUERIES_OR_KEYS = re.compile(r"\.[qk]_proj\.weight$")


def base_infos(model: CausalLM, trained: list[tuple[str, nn.Parameter]]) -> list[ParamInfo]:
    """Base weights that train, by the names they have in the base model, with their roles and how they are stored."""
    if not trained:
        return []
    embedding = model.hf.get_input_embeddings().get_parameter("weight")
    head = head_of(model.hf).get_parameter("weight")
    roles = {id(head): "head", id(embedding): "embedding"}  # tied, it is an embedding
    roles |= {id(model.hf.get_parameter(f"{SCORE}.weight")): "head"} if model.labels else {}
    linear = [module for module in model.hf.modules() if linear_shape(module)]
    matrices = {id(parameter) for module in linear for parameter in module.parameters(recurse=False)}
    transposed = {id(module.get_parameter("weight")) for module in linear if is_transposed(module)}
    experts, found = paths_apart(model.hf), []
    for name, parameter in trained:
        is_matrix = id(parameter) in matrices and parameter.ndim == 2
        role = roles.get(id(parameter)) or ("matrix" if is_matrix else "vector")
        block = BLOCK.match(name)
        found.append(
            ParamInfo(
                name,
                parameter,
                role,
                block=block.group(1) if block else "",
                sparse=bool(experts) and name.startswith(experts),
                head_rows=_head_rows(model, name, parameter),
                transposed=id(parameter) in transposed,
            )
        )
    return found


def _head_rows(model: CausalLM, name: str, parameter: nn.Parameter) -> int:
    """Rows of a head of queries or keys; 0 of what is neither, or holds them beside other rows."""
    if not QUERIES_OR_KEYS.search(name) or parameter.ndim != 2:
        return 0
    config = model.hf.config.get_text_config()
    rows = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(rows) if len(parameter) % rows == 0 else 0
