"""Adapters around whole modules, and those among them that are a change of the module's own parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lrft.core.adapted import Adapted
from lrft.core.adapter import Adapter
from lrft.core.frozen import FrozenLinear
from lrft.registry.errors import NotMergeable


class OfParameters(Adapter):
    """An adapter of a norm or of the input embedding that changes its parameters: the trait `block_parameters`."""

    def merged_parameters(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parameters as they are merged, float32; those that stay may be left out.

        Args:
            own: the parameters as they are, by name, float32.
        """
        raise NotImplementedError(f"{type(self).__name__} declares no merge")

    def vocabulary_rows(self) -> tuple[Tensor, Tensor] | None:
        """Rows (k, hidden) for some of the input embedding, which a tied head reads too, and their ids (k,)."""
        return None


class AdaptedBlock(Adapted):
    """An adapter around a whole module: a feed-forward block, an attention, a norm, the input embedding.

    It is called as the module is, `adapter(*arguments, base=module)`, and answers for what the model's code asks of
    the module by name (`weight` of an embedding, say).
    """

    def __init__(self, base: FrozenLinear, adapter: Adapter) -> None:
        super().__init__(base, adapter)
        del self._parameters["bias"]  # whoever asks means the module's

    def forward(self, *arguments: object, **named: object) -> Any:
        """What the module gives, adapted."""
        block: nn.Module = self.base
        return self.adapter(*arguments, base=block, **named) if self.enabled else block(*arguments, **named)

    def merged_weight(self, weight: Tensor | None = None) -> Tensor:
        """Refused: a whole block has no one weight.

        Raises:
            NotMergeable: always.
        """
        raise NotMergeable(
            f"{self.adapter.site.name} is no linear map, so it has no one weight; use `lrft merge`"
        )

    @torch.no_grad()
    def merged_parameters(self, own: Mapping[str, Tensor] | None = None) -> dict[str, tuple[Tensor, Tensor]]:
        """Parameter -> as it is and as it is merged, in float32.

        Args:
            own: the parameters to merge onto; by default the block's.

        Raises:
            NotMergeable: the method is not a change of them.
        """
        self._check_mergeable()
        adapter, block = self.adapter, self.base
        if not isinstance(adapter, OfParameters):
            raise NotMergeable(
                f"{adapter.name} is no change of {adapter.site.name}; keep the adapter separate"
            )
        given = dict(block.named_parameters()) if own is None else own
        before = {name: parameter.detach().float() for name, parameter in given.items()}
        return {name: (before[name], after) for name, after in adapter.merged_parameters(before).items()}

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)
