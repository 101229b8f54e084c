"""Rows of new tokens as PEFT holds them beside a LoRA adapter: `trainable_token_indices`."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.export.rounding import rounded
from lrft.model.causal_lm import CausalLM
from lrft.model.hf import head_of
from lrft.registry.json import Json

KEY = "base_model.model.{}.token_adapter.trainable_tokens_delta"


def token_rows(
    model: CausalLM, peft_type: str, dtype: torch.dtype
) -> tuple[dict[str, Tensor], dict[str, Json]] | None:
    """The rows in `dtype` under PEFT's names, and what its configuration says of them; empty where no token is new.

    The head that is tied to the embedding follows it in PEFT too. Before it loads the folder, the base has to be given
    as many rows as there are tokens (`resize_token_embeddings`).

    Returns:
        None where PEFT cannot say it: its other methods have no such rows, and its rows of a head leave out the bias.

    Raises:
        NumericalError: a number is not finite, or beyond `dtype`.
    """
    rows = model.new_rows
    if rows is None:
        return {}, {}
    embedding, head = model.hf.get_input_embeddings(), head_of(model.hf)
    if peft_type != "LORA" or head.bias is not None:
        return None
    paths = {id(module): name for name, module in model.hf.named_modules()}
    held: list[tuple[str, Tensor]] = [(paths[id(embedding)], rows.input)]
    if rows.output is not None:
        held.append((paths[id(head)], rows.output))
    ids: Json = list(range(rows.first, rows.first + rows.count))
    tensors = {KEY.format(name): rounded(name, value, dtype, stochastic=False) for name, value in held}
    return tensors, {"trainable_token_indices": {name.rpartition(".")[2]: ids for name, _ in held}}


def loses_bias(model: CausalLM, peft_type: str) -> bool:
    """Whether PEFT's rows of an embedding would stand for a tied head that has a bias, which they leave out."""
    head = model.hf.get_output_embeddings()
    tied = head is not None and model.hf.get_input_embeddings().weight is head.weight
    return peft_type == "TRAINABLE_TOKENS" and tied and getattr(head, "bias", None) is not None
