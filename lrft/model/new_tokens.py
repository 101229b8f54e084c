"""`model.add_tokens`: tokens that the tokenizer and the model did not have, and the rows that train for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lrft.core.params import Site
from lrft.core.rows import embedding_scale
from lrft.data.seam import token_ids
from lrft.model.causal_lm import CausalLM
from lrft.model.hf import head_of
from lrft.model.new_rows import NewRows
from lrft.model.probe import batch_of
from lrft.recipe.sections import ModelSection
from lrft.registry.errors import RecipeError
from lrft.registry.protocols import Tokenizer

KEY = "model.add_tokens"
KINDS = (
    "linear",
    "expert",
    "mlp",
    "norm",
)  # of sites: others read the embedding, or put virtual tokens before the text
TOLERANCE = 0.05  # of the largest logit: what bfloat16 may cost


@dataclass(frozen=True)
class NewTokens:
    """What was added to a tokenizer.

    Attributes:
        first: id of the first; the others follow it.
        pieces: for each, the ids of the tokens that its text was before.
    """

    first: int
    pieces: list[list[int]]


def add_tokens(tokenizer: Tokenizer, section: ModelSection) -> NewTokens | None:
    """Add the recipe's new tokens to its tokenizer, special ones last; None where it names none.

    Raises:
        RecipeError: one is a token already, or its text is none to the tokenizer; or it gives them ids with gaps.
    """
    asked = section.add_tokens
    if asked is None:
        return None
    from transformers import AddedToken

    texts, known = asked.texts, tokenizer.get_vocab()
    for text in texts:
        if text in known:
            raise RecipeError(f"{text!r} is a token of this tokenizer already; leave it out", KEY)
    pieces = [token_ids(tokenizer, text) for text in texts]
    for text, parts in zip(texts, pieces, strict=True):
        if not parts:
            raise RecipeError(f"the tokenizer sees nothing in {text!r}; give a token another text", KEY)
    for special, group in ((False, asked.plain), (True, asked.special)):
        tokens = [AddedToken(text, special=special, normalized=False) for text in group]
        tokenizer.add_tokens(tokens, special_tokens=special)
    ids = [tokenizer.convert_tokens_to_ids(text) for text in texts]
    if ids != list(range(ids[0], ids[0] + len(ids))) or any(len(token_ids(tokenizer, t)) != 1 for t in texts):
        raise RecipeError("this tokenizer does not take new tokens one after the other", KEY)
    return NewTokens(ids[0], pieces)


@torch.no_grad()
def extend(model: CausalLM, new: NewTokens, multiple: int | None = None) -> None:
    """Give the model rows for new tokens: frozen ones at their start in the matrices, and those that train.

    A row starts as the mean of the rows of the pieces that the token's text was before, in float32. Rows that no token
    has, which `multiple` pads with, are the mean of all rows: each then takes no more probability than a token does on
    average. Tied matrices stay one.

    Args:
        multiple: pad the vocabulary to a multiple of this.

    Raises:
        RecipeError: its matrices cannot be given rows.
    """
    hf = model.hf
    embedding, head = hf.get_input_embeddings(), head_of(hf)
    size, tied = embedding.num_embeddings, head.weight is embedding.weight
    if head.weight.shape[0] != size:
        raise _unknown(model, f"its head has {head.weight.shape[0]} rows and its embedding {size}")
    starts = _means(embedding.weight, new.pieces)
    own = None if tied else _means(head.weight, new.pieces)
    bias = None if head.bias is None else _means(head.bias[:, None], new.pieces)[:, 0]
    _resize(model, max(size, new.first + len(new.pieces)), multiple)
    embedding, head = hf.get_input_embeddings(), head_of(hf)
    if (head.weight is embedding.weight) != tied:
        raise _unknown(model, "transformers does not keep its head tied as it was")
    rows = NewRows(new.first, starts, own, embedding_scale(embedding))
    rows.write(embedding, head)
    if bias is not None:
        head.bias[new.first : new.first + rows.count] = bias.to(head.bias)
    model.give_new_rows(rows)


def _means(matrix: Tensor, pieces: list[list[int]]) -> Tensor:
    """(V, d) -> (k, d) float32."""
    return torch.stack([matrix[torch.tensor(ids, device=matrix.device)].float().mean(0) for ids in pieces])


def _resize(model: CausalLM, rows: int, multiple: int | None) -> None:
    """Let both matrices have so many rows or the next multiple; those that are more are the mean of what is there."""
    hf = model.hf
    size = hf.get_input_embeddings().num_embeddings
    rows += -rows % (multiple or 1)
    if rows == size:
        return
    hf.resize_token_embeddings(rows, mean_resizing=False)
    hf.requires_grad_(False)
    found = (hf.get_input_embeddings(), hf.get_output_embeddings())
    for tensor in {id(t): t for module in found if module is not None for t in module.parameters()}.values():
        tensor[size:] = tensor[:size].float().mean(0).to(tensor)


@torch.no_grad()
def prove_rows(model: CausalLM) -> None:
    """Compare rows beside the matrices with rows in them, both of numbers that the model has not seen.

    Raises:
        RecipeError: the logits differ, so the model reads its matrices in another way.
    """
    rows = model.new_rows
    if rows is None:
        return
    embedding, head = model.hf.get_input_embeddings(), head_of(model.hf)
    last = rows.first + rows.count - 1
    batch = batch_of([[[1, rows.first, 2, last]]]).to(model.device)
    kept = [parameter.clone() for parameter in rows.parameters()]
    draws = torch.Generator().manual_seed(0)
    for parameter, matrix in zip(rows.parameters(), (embedding.weight, head.weight), strict=False):
        noise = torch.randn(parameter.shape, generator=draws)
        parameter.copy_(noise.to(matrix.device) * matrix.float().std())
    dropping = [module for module in model.modules() if module.training]
    model.eval()
    beside = model(batch).float()
    rows.write(embedding, head)
    model.new_rows = None
    inside = model(batch).float()
    for module in dropping:
        module.training = True
    for parameter, value in zip(rows.parameters(), kept, strict=True):
        parameter.copy_(value)
    rows.write(embedding, head)
    model.new_rows = rows
    if not bool((beside - inside).abs().max() < TOLERANCE * inside.abs().max().clamp_min(1e-6)):
        raise _unknown(model, "it reads its embedding in a way that lrft does not know")


def _unknown(model: CausalLM, why: str) -> RecipeError:
    name = type(model.hf).__name__
    return RecipeError(f"new tokens cannot be given to {name}: {why}; name another model", KEY)


def check_vocabulary(model: CausalLM, sites: Mapping[str, Site] | None = None) -> None:
    """Refuse new tokens where the embedding or the head trains itself, or bears an adapter.

    Raises:
        RecipeError: names it.
    """
    if model.new_rows is None:
        return
    modules = {"embedding": model.hf.get_input_embeddings(), "head": model.hf.get_output_embeddings()}
    for what, module in modules.items():
        if module is not None and any(parameter.requires_grad for parameter in module.parameters()):
            raise RecipeError(
                f"the whole {what} would train, and with it the rows of new tokens; leave it out, or name a model "
                "that has the tokens",
                "trainable.weights",
            )
    odd = next((name for name, site in (sites or {}).items() if site.kind not in KINDS), None)
    if odd is not None:
        raise RecipeError(f"new rows do not train beside an adapter on {odd}; remove one of the two", KEY)


def take_in(model: CausalLM, rows: NewRows) -> None:
    """Let the matrices of a dense model hold trained rows, and nothing stand beside them."""
    embedding, head = model.hf.get_input_embeddings(), head_of(model.hf)
    rows.write(embedding, head)
    model.new_rows = None
