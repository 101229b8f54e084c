"""Rows of new tokens: parameters of their own in the place of the rows that a frozen matrix has for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lrft.core.params import ParamInfo
from lrft.core.rows import embedded_with, scored_with

TOKENS = "tokens."  # goes before their names in a checkpoint


class NewRows(nn.Module):
    """The trained rows of `model.add_tokens`, in float32, and what they change of the two maps of the vocabulary.

    Args:
        first: id of the first new token; the others follow it.
        input: (k, hidden) rows of the input embedding, and of the head too where that is tied to it.
        output: (k, hidden) rows of a head that has its own, or None.
        scale: what the embedding multiplies its rows by.
    """

    input: nn.Parameter
    output: nn.Parameter | None

    def __init__(self, first: int, input: Tensor, output: Tensor | None, scale: float = 1.0) -> None:
        super().__init__()
        self.first, self.scale = first, scale
        self.input = nn.Parameter(input.float())
        self.register_parameter("output", None if output is None else nn.Parameter(output.float()))

    @property
    def count(self) -> int:
        """How many tokens are new."""
        return self.input.shape[0]

    @property
    def head(self) -> nn.Parameter:
        """(k, hidden) rows of the head."""
        return self.input if self.output is None else self.output

    def embed(self, ids: Tensor, embedded: Tensor) -> Tensor:
        """(B, L) ids, (B, L, hidden) what the embedding gave -> the same with the new tokens' rows in their places."""
        return embedded_with(self.input, self.places(ids.device), ids, embedded, self.scale)

    def score(self, hidden: Tensor, logits: Tensor, bias: Tensor | None) -> Tensor:
        """(..., hidden), (..., V) of the frozen head -> the same with the new tokens' logits in their places."""
        return scored_with(self.head, self.places(logits.device), hidden, logits, bias)

    def places(self, device: torch.device) -> Tensor:
        """Ids of the new tokens, (k,)."""
        return torch.arange(self.first, self.first + self.count, device=device)

    def infos(self) -> list[ParamInfo]:
        """The parameters with their roles; tied, they are an embedding."""
        roles = {"input": "embedding", "output": "head"}
        return [
            ParamInfo(f"{TOKENS}{name}", parameter, roles[name], TOKENS.rstrip("."), sparse=True)
            for name, parameter in self.named_parameters()
        ]

    @torch.no_grad()
    def write(self, embedding: nn.Embedding, head: nn.Linear) -> None:
        """Put the rows into the matrices, in the precision of these."""
        end = self.first + self.count
        embedding.weight[self.first : end] = self.input.to(embedding.weight)
        if self.output is not None:
            head.weight[self.first : end] = self.output.to(head.weight)
