"""An exported adapter on the run's own base, as the files that were read back say it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrft.core.adapted import adapted, adapters_off
from lrft.core.batch import Batch
from lrft.export.pairs import Pair
from lrft.model.causal_lm import CausalLM
from lrft.ops.loss import Head


class Served:
    """A model that computes with `pairs` where its own adapters are: y = x W^T + scale (x A^T) B^T.

    Args:
        model: the run's; it is left as it was after every pass.
        pairs: site -> factors, in the precision of the file, which is that of the products.
    """

    def __init__(self, model: CausalLM, pairs: Mapping[str, Pair]) -> None:
        self.model = model
        self.pairs = pairs

    @property
    def head(self) -> Head:
        """That of the model."""
        return self.model.head

    @property
    def device(self) -> torch.device:
        """That of the model."""
        return self.model.device

    def hidden(self, batch: Batch) -> Tensor:
        """Last hidden states (B, L, d), final norm included."""
        with self._pairs():
            return self.model.hidden(batch)

    def scores(self, batch: Batch) -> Tensor:
        """Scores (documents, labels) of the run's score head, which the files hold as it is."""
        with self._pairs():
            return self.model.scores(batch)

    @contextmanager
    def _pairs(self) -> Iterator[None]:
        sites = adapted(self.model.hf)
        with adapters_off(self.model.hf), with_pairs(sites, self.pairs, self.model.device):
            yield


@contextmanager
def with_pairs(
    modules: Iterable[tuple[str, nn.Module]], pairs: Mapping[str, Pair], device: torch.device
) -> Iterator[None]:
    """Let the modules that have a pair add it: y + scale (x A^T) B^T."""
    given = {name: (pair.A.to(device), pair.B.to(device), pair.scale) for name, pair in pairs.items()}
    handles = [
        module.register_forward_hook(partial(_add, given[name])) for name, module in modules if name in given
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _add(pair: tuple[Tensor, Tensor, float], module: nn.Module, inputs: tuple[Any, ...], y: Tensor) -> Tensor:
    A, B, scale = pair
    return y + (scale * F.linear(F.linear(inputs[0].to(A.dtype), A), B)).to(y.dtype)
