"""What one site becomes: adapter and start from the true weight, then the base in its storage, in this order."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from lrft.core.adapted import Adapted
from lrft.core.adapter import Adapter, Additive, Factors, Shared
from lrft.core.features import Features
from lrft.core.frozen import Absent, FrozenLinear, Quantizer
from lrft.core.less import Less
from lrft.core.params import Site
from lrft.core.sharded import shard
from lrft.core.stages import Init, Signals, SitePlan
from lrft.core.team import ALONE, Team
from lrft.model.load import DTYPES
from lrft.model.sites import is_transposed
from lrft.registry.config import AdapterConfig
from lrft.registry.errors import RecipeError


class Held(Protocol):
    """Makes a layer as its checkpoint stores it."""

    def __call__(self, dtype: torch.dtype, bias: Tensor | None = None) -> FrozenLinear: ...


@dataclass
class SiteBuilder:
    """Makes the frozen form of a linear layer, with its adapter where the plan has one.

    Attributes:
        quantize: how bases are stored.
        config: the recipe's settings of the adapter; those of a site are in its plan.
        saved: adapter tensors of a checkpoint. Nothing is initialised then: its starts are used instead of
            decomposing again, since a decomposition is not the same bits on another machine.
        shared: what the adapters of all sites share, once it is made.
        team: the processes that keep a part of every base each, where they go in step; else each keeps all.
        put: takes the base of a layer elsewhere as soon as it is made; None where it stays.
    """

    quantize: Quantizer
    adapter: type[Adapter] | None = None
    config: AdapterConfig | None = None
    init: Init | None = None
    signals: Signals = field(default_factory=dict)
    saved: dict[str, Tensor] | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    shared: Shared | None = None
    team: Team = ALONE
    put: Callable[[str, FrozenLinear | Adapted], None] | None = None
    built: int = 0

    @property
    def features(self) -> Features:
        """Features of rows that the maps depend on; none where the adapter goes by them in training alone."""
        if self.adapter is None or "training_features" in self.adapter.provides:
            return ()
        return self.adapter.row_features(self.config)

    def part(self, entry: SitePlan | None) -> Adapter | None:
        """The adapter of a site, if the plan has one there.

        Raises:
            RecipeError: the adapter cannot take the shape of the site.
        """
        if entry is None or entry.config is None:
            return None
        assert self.adapter is not None
        return make_adapter(self.adapter, entry.config, entry.site, self.shared).to(self.device)

    def layer(
        self, name: str, layer: nn.Module, entry: SitePlan | None, held: Held | None = None
    ) -> FrozenLinear | Adapted:
        """The frozen form of a linear layer, with its adapter if it gets one, and with its own bias if that trains.

        Args:
            held: makes the form that the checkpoint has the layer in, which is then kept as it is.
        """
        weight, bias = dense(layer)
        trained = layer.bias if isinstance(layer.bias, nn.Parameter) and layer.bias.requires_grad else None
        kept = bias if trained is None else None
        part, store = self.part(entry), _storing(self.quantize, entry)
        if held is not None and not (entry is not None and entry.quantization):
            store = _keeping(weight, held, store)
        made = store(weight, kept) if part is None else self.adapt(name, part, weight, kept, store)
        if trained is not None:
            made.train_bias(trained)
        self.built += 1
        if self.put is not None:
            self.put(name, made)
        return shard(made, self.team, self.built) if self.team.in_step else made

    def adapt(
        self, name: str, part: Adapter, weight: Tensor, bias: Tensor | None, store: Quantizer
    ) -> Adapted:
        """Adapter and base of one site; with a residual init the base gives up the adapter's start.

        Args:
            weight: the true weight (out, in), never a rounded one.
            store: the storage with what was planned for this site.

        Raises:
            RecipeError: the init cannot start at this site.
        """
        if "own_weights" in part.provides:
            part.start(weight)
            return Adapted(Absent(weight, bias), part)
        start, offset = self._start(name, part, weight, store)
        if start is None:
            base = store(weight, bias)
            part.start(base.weight())
            return Adapted(base, part)
        return Adapted(self._less(weight, bias, store, start, offset), part)

    def _start(
        self, name: str, part: Adapter, weight: Tensor, store: Quantizer
    ) -> tuple[Additive | None, Factors | None]:
        """The start that the base gives up and, where it is another, what is taken off the weight for it."""
        if self.saved is not None:
            return saved_start(name, part, self.saved)
        assert self.init is not None
        try:
            offset = self.init.apply(part, weight, self.signals.get(name, {}), store)
        except ValueError as error:
            raise RecipeError(f"{part.site.name}: {error}", "init") from None
        return (_frozen_copy(part), offset) if self.init.residual else (None, None)

    def _less(
        self,
        weight: Tensor,
        bias: Tensor | None,
        store: Quantizer,
        start: Additive,
        offset: Factors | None,
    ) -> Less:
        if offset is not None:
            A, B = (part.to(weight.device) for part in offset)
            residual = weight.float() - B @ A
            return Less(store(residual.to(weight.dtype), bias), start, offset=(A, B))
        assert self.init is not None
        wanted = getattr(self.init.config, "residual", "rewrite")
        base = store(weight, bias)
        if wanted == "anchor" or (wanted is None and "dense_base" not in base.provides):
            return Less(base, start, anchored=True)
        with torch.no_grad():
            residual = weight.float() - start.delta_weight(weight.float())
        return Less(store(residual.to(weight.dtype), bias), start)


def make_adapter(
    adapter: type[Adapter], config: AdapterConfig, site: Site, shared: Shared | None = None
) -> Adapter:
    """The adapter of a site in the precision it computes in.

    Raises:
        RecipeError: it cannot take the shape of the site.
    """
    try:
        part = adapter.at(config, site, shared)
    except ValueError as error:
        raise RecipeError(f"{site.name}: {error}", "adapter") from None
    if config.dtype is not None:
        part.compute_dtype = DTYPES[config.dtype]
    return part


def dense(layer: nn.Module, weight: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """The dense (out, in) weight and the bias of a linear layer as transformers loaded it.

    Args:
        weight: as transformers holds it, where the layer itself has none yet.
    """
    weight = layer.get_parameter("weight").detach() if weight is None else weight
    bias = None if layer.bias is None else layer.get_parameter("bias").detach()
    return (weight.mT.contiguous() if is_transposed(layer) else weight), bias


def _storing(quantize: Quantizer, entry: SitePlan | None) -> Quantizer:
    """The recipe's storage with the settings that a planner chose for this site."""
    chosen = {} if entry is None else entry.quantization

    def store(weight: Tensor, bias: Tensor | None = None, **settings: object) -> FrozenLinear:
        return quantize(weight, bias, **{**chosen, **settings})

    return store


def _keeping(dense: Tensor, held: Held, store: Quantizer) -> Quantizer:
    """`store`, but for the weight as the checkpoint has it, which is stored already."""

    def keep(weight: Tensor, bias: Tensor | None = None, **settings: object) -> FrozenLinear:
        if weight is dense and not settings:
            return held(weight.dtype, bias).to(weight.device)
        return store(weight, bias, **settings)

    return keep


def saved_start(name: str, part: Adapter, saved: dict[str, Tensor]) -> tuple[Additive | None, Factors | None]:
    """The `start` and `offset` of one site in a checkpoint."""
    held = {
        kind: {
            key.removeprefix(f"{name}.{kind}."): tensor
            for key, tensor in saved.items()
            if key.startswith(f"{name}.{kind}.")
        }
        for kind in ("start", "offset")
    }
    offset = (held["offset"]["A"], held["offset"]["B"]) if held["offset"] else None
    if not held["start"]:
        return None, offset
    start = _frozen_copy(part)
    start.load_state_dict(held["start"])
    return start, offset


def _frozen_copy(part: Adapter) -> Additive:
    start = copy.deepcopy(part)
    assert isinstance(start, Additive), "a base gives up additive starts alone"
    return start
