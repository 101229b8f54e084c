"""Merged weights in few bits again: rounded with error feedback, block after block, and a remainder of low rank.

Every block is measured on what the blocks before it give as they are rounded. Of each of its layers, H = X^T X and its
U (`lrft.export.feedback`) come from there; the scales are searched with the cost 1 / U_kk^2 of an error in column k,
stored as the format stores them, and then the columns are rounded against the scales that decode. What the rounding
left, D = W - Q, is kept to rank K as the two factors that leave the least of D X^T.
Source: Frantar et al., "GPTQ", ICLR 2023, arXiv 2210.17323, for the feedback and for measuring behind rounded layers.
Departures: scales are searched, and settled before the first column, so that columns can go by falling diagonal on
any grid and the scales may be quantized themselves; measured on correlated inputs, that leaves about half of the error
of scales taken block by block with the columns in their own order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lrft.core import stop
from lrft.core.batch import Batch
from lrft.core.in_layer import in_layer
from lrft.core.levels import Levelled
from lrft.core.objective import Objective
from lrft.core.on_grid import OnGrid
from lrft.core.params import Site
from lrft.export.feedback import Feedback, moments, rounders
from lrft.export.pairs import Pair
from lrft.export.rounding import check_finite, rounded
from lrft.model.causal_lm import CausalLM
from lrft.model.in_turn import InTurn
from lrft.model.sites import linear_sites
from lrft.ops.levels import Levels
from lrft.registry.config import MethodConfig
from lrft.registry.json import Json


@dataclass(frozen=True)
class Bits:
    """What the layers are stored in.

    Attributes:
        storage, config: the format and its settings.
        dtype: of everything else, of the remainder, and of what the layers compute in.
        rank: of the remainder of every layer; 0 for none.
    """

    storage: type[Levelled]
    config: MethodConfig
    dtype: torch.dtype
    rank: int = 0

    def stored(self, weight: Tensor) -> Levelled:
        """A weight (out, in) as the format itself stores it."""
        make: Callable[..., Levelled] = self.storage
        return make(weight, None, self.config)


@dataclass
class InBits:
    """A model whose layers are stored in few bits.

    Attributes:
        layers: those layers, by path.
        dense: linear layers that are not, the head among them: whose shape the format does not fit, that stand outside
            the blocks of the model, that the model's own code reads, or that transformers does not replace.
        pairs: the remainder of every layer, in the precision of its file.
        unmeasured: layers that no calibration token reached, which are rounded to nearest.
        exact: layers whose merged weight lies on the storage's grid already, and is held as it is.
    """

    layers: dict[str, Levelled] = field(default_factory=dict)
    dense: list[str] = field(default_factory=list)
    pairs: dict[str, Pair] = field(default_factory=dict)
    unmeasured: list[str] = field(default_factory=list)
    exact: list[str] = field(default_factory=list)


def layers_to_round(dense: CausalLM, bits: Bits) -> list[str]:
    """Paths of the layers that are stored in few bits, in the order of the model."""
    return [site.name for sites in _open(dense, bits)[0].values() for site in sites]


@torch.no_grad()
def round_in_turn(
    dense: CausalLM,
    batches: Sequence[Batch],
    objective: Objective,
    bits: Bits,
    grids: Mapping[str, OnGrid] | None = None,
) -> InBits:
    """Round the layers of a merged model in float32, in place: `dense` then computes with what is stored.

    Args:
        grids: by path what says of a merged weight which integers it is.

    Raises:
        UsageError: the model's blocks cannot be computed one after another.
        NumericalError: a weight is not finite.
    """
    dense.eval()  # and so it stays behind every measuring
    blocks, found = _open(dense, bits)
    turn = InTurn(dense, list(blocks), batches)
    for place, sites in enumerate(blocks.values()):
        with turn.only(place) as measured:
            ready = rounders(moments(dense, sites, measured, objective))
        for site in sites:
            stop.poll()
            if not _held(dense, site, (grids or {}).get(site.name), bits, found):
                _round(dense, site, ready.get(site.name), bits, found)
        turn.advance(place)
    return found


@torch.no_grad()
def round_to_nearest(dense: CausalLM, bits: Bits) -> InBits:
    """The same layers as the format itself rounds them, which is what quantizing a merged model gives."""
    blocks, found = _open(dense, bits)
    for site in (site for sites in blocks.values() for site in sites):
        stop.poll()
        found.layers[site.name] = bits.stored(_weight(dense, site))
    return found


@torch.no_grad()
def cast(dense: CausalLM, found: InBits, dtype: torch.dtype, stochastic: bool) -> dict[str, Tensor]:
    """Bring what is not in few bits to `dtype`, in place; everything that a file holds of the model, by name."""
    for name, parameter in dense.hf.named_parameters():
        stop.poll()
        parameter.data = rounded(name, parameter, dtype, stochastic)
    held = dict(dense.hf.state_dict())
    for name, layer in found.layers.items():
        del held[f"{name}.weight"]
        held |= {f"{name}.{key}": part.contiguous() for key, part in layer.stored(dtype).items()}
    return held


def said(found: InBits, bits: Bits) -> dict[str, Json]:
    """What config.json says of the storage."""
    return bits.storage.said(bits.config, bits.dtype, found.dense)


def _open(dense: CausalLM, bits: Bits) -> tuple[dict[str, list[Site]], InBits]:
    """The layers to round by block, in the order of the model."""
    blocks: dict[str, list[Site]] = {}
    for name, site in linear_sites(dense).items():
        block = in_layer(name)
        fits = bits.storage.fits(bits.config, site.out_features, site.in_features)
        plain = type(dense.hf.get_submodule(name)) is nn.Linear  # transformers replaces no other
        if block is not None and fits and plain:
            blocks.setdefault(block.path, []).append(site)
    chosen = {site.name for sites in blocks.values() for site in sites}
    linear = [name for name, module in dense.hf.named_modules() if isinstance(module, nn.Linear)]
    return blocks, InBits(dense=[name for name in linear if name not in chosen])


def _weight(dense: CausalLM, site: Site) -> Tensor:
    weight = dense.hf.get_submodule(site.name).get_parameter("weight")
    check_finite(f"{site.name}.weight", weight)
    return weight.detach().float()


def _held(dense: CausalLM, site: Site, grid: OnGrid | None, bits: Bits, found: InBits) -> bool:
    """Hold a weight that is on the grid already; whether it was."""
    weight = _weight(dense, site).cpu()
    integers = None if grid is None else grid.on_grid(weight)
    if integers is None:
        return False
    layer = bits.stored(weight)
    if not layer.hold(integers):
        return False
    found.exact.append(site.name)
    found.layers[site.name] = layer
    return True


def _round(dense: CausalLM, site: Site, feedback: Feedback | None, bits: Bits, found: InBits) -> None:
    weight = _weight(dense, site).cpu()
    layer = bits.stored(weight)
    if feedback is None:
        found.unmeasured.append(site.name)
    else:
        _choose(layer, weight, feedback)
    stored = layer.weight()
    found.layers[site.name] = layer
    if bits.rank and feedback is not None:
        pair = Pair(*feedback.remainder(weight - stored, bits.rank), exact=False).to(bits.dtype)
        found.pairs[site.name] = pair
        stored = stored + pair.dense()
    parameter = dense.hf.get_submodule(site.name).get_parameter("weight")
    parameter.copy_(stored)


def _choose(layer: Levelled, weight: Tensor, feedback: Feedback) -> None:
    """Settle the scales of `layer`, and round `weight` onto its grid with feedback."""
    layer.search(weight, feedback.cost)
    scale, values = layer.grid()
    levels, codes = Levels(values), torch.empty(weight.shape, dtype=torch.long)

    def nearest(k: int, column: Tensor) -> Tensor:
        codes[:, k] = levels.codes(column / scale[:, k])
        return scale[:, k] * levels.values[codes[:, k]]

    feedback.round(weight, nearest)
    layer.take(codes)
