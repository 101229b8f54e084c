"""Which rows of what a site is given count, while it is measured."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """Which of a micro-batch's flattened tokens count.

    Attributes:
        real: rows of the site's inputs that are no padding; flat indices of tokens, but of an expert.
        supervised: flat indices in the micro-batch of the positions whose next token is a target: the loss is of these.
        chosen: of an expert, the token that each row of its inputs is; None where the rows are all tokens in order.
    """

    real: Tensor
    supervised: Tensor
    chosen: Tensor | None = None

    @property
    def answers(self) -> Tensor:
        """Rows that are targets themselves."""
        return self._rows(self.supervised + 1)

    def of_expert(self, chosen: Tensor) -> Tokens:
        """The same for an expert whose rows are the tokens `chosen`."""
        rows = Tokens(self.real, self.supervised, chosen)
        return Tokens(rows._rows(self.real), self.supervised, chosen)

    def _rows(self, tokens: Tensor) -> Tensor:
        if self.chosen is None:
            return tokens
        return torch.isin(self.chosen, tokens).nonzero().flatten()
