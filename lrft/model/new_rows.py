"""Rows of new tokens: parameters of their own in the place of the rows that a frozen matrix has for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrft.core.params import ParamInfo

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
        place = ids - self.first
        new = (place >= 0) & (place < self.count)
        # Looked up in float32, so that the gradients of a token that stands at many places are summed in it.
        rows = F.embedding(place.clamp(0, self.count - 1), self.input.to(ids.device)).to(embedded.dtype)
        return torch.where(new[..., None], rows * self.scale if self.scale != 1.0 else rows, embedded)

    def score(self, hidden: Tensor, logits: Tensor, bias: Tensor | None) -> Tensor:
        """(..., hidden), (..., V) of the frozen head -> the same with the new tokens' logits in their places."""
        end = self.first + self.count
        own = None if bias is None else bias[self.first : end]
        new = F.linear(hidden, self.head.to(hidden.device, hidden.dtype), own)
        return torch.cat([logits[..., : self.first], new, logits[..., end:]], dim=-1)

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
