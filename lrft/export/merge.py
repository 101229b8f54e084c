"""Merging: what was trained as dense weights, added in float32, rounded once, never quantized again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lrft.core import stop
from lrft.core.adapted import adapted
from lrft.core.params import Site
from lrft.core.units import CUT, HIDDEN
from lrft.export.changes import Change, changes_of
from lrft.export.feedback import Feedback, groups, rounders
from lrft.export.rounding import rounded
from lrft.model.causal_lm import CausalLM
from lrft.model.experts import join
from lrft.model.new_tokens import take_in
from lrft.model.units import cut
from lrft.registry.errors import NotMergeable


@dataclass(frozen=True)
class Rounding:
    """How merged weights reach a precision below float32.

    Attributes:
        method: `stochastic`, `nearest` or `feedback`.
        moments: layers -> X^T X of their inputs by path, for `feedback`; what it leaves out is rounded stochastically.
    """

    method: str = "stochastic"
    moments: Callable[[list[Site]], dict[str, Tensor]] | None = None


@torch.no_grad()
def merge_into(
    dense: CausalLM, model: CausalLM, *, onto: str, dtype: torch.dtype, rounding: Rounding | None = None
) -> list[str]:
    """Give `dense`, a freshly loaded base, the merged weights of `model`, in place, as `merged_one_by_one` makes them.

    Units that the run pruned are cut off, and experts that it took apart put together again.

    Returns:
        Names of the tensors that were rounded stochastically.

    Raises:
        NotMergeable, NumericalError: as there; nothing has been written.
    """
    if model.pruned is not None and model.pruned.state == CUT:
        cut(dense.hf, model.pruned)
    weights = dict(dense.hf.named_parameters())
    drawn: list[str] = []
    making = merged_one_by_one(weights, model, onto=onto, dtype=dtype, rounding=rounding, drawn=drawn)
    for name, make in making:
        stop.poll()
        weights[name].data = make()
    join(dense.hf)
    if model.new_rows is not None:
        take_in(dense, model.new_rows)
    if model.pruned is not None and model.pruned.state == HIDDEN:
        cut(dense.hf, model.pruned)
    return drawn


@torch.no_grad()
def merged_one_by_one(
    originals: Mapping[str, Tensor],
    model: CausalLM,
    *,
    onto: str,
    dtype: torch.dtype,
    rounding: Rounding | None = None,
    drawn: list[str] | None = None,
) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Name of every parameter of the base, and what makes its merged value in `dtype`; rows of new tokens are left out.

    W' = W + delta(W) with W the decoded base that training saw (`dequantized`) or the original weight
    (`original`), computed in float32 and rounded to `dtype` once. Layers that were quantized without an adapter
    get their decoded weight too under `dequantized`, so that the merged model is the trained one. What the run did
    not change is cast to nearest, which is nothing in the same dtype.

    Args:
        originals: the base's parameters by name, looked up once where a value is made, so they may be read then.
        drawn: names of those that are rounded stochastically are added to it as they are made.

    Raises:
        NotMergeable: the adapter is not a change of the weight.
        NumericalError: of what makes a value: it is not finite, or beyond `dtype`.
    """
    check_mergeable(model)
    rounding = rounding or Rounding()
    drawn = [] if drawn is None else drawn
    changes = list(changes_of(model, originals, onto))
    left = [name for name in originals if name not in {change.name for change in changes}]
    for group, ready in _grouped(changes, rounding if dtype != torch.float32 else Rounding()):
        for change in group:
            feedback = None if change.layer is None else ready.get(change.layer.name)
            yield change.name, partial(_rounded, change, originals, dtype, rounding, feedback, drawn)
    for name in left:
        yield name, partial(_kept, name, originals, dtype)


@torch.no_grad()
def _rounded(
    change: Change,
    originals: Mapping[str, Tensor],
    dtype: torch.dtype,
    rounding: Rounding,
    feedback: Feedback | None,
    drawn: list[str],
) -> Tensor:
    """The merged value in `dtype`; one that is the original is cast as what the run did not change is."""
    value, original = change.weight().cpu(), originals[change.name]
    if torch.equal(value, original.float()):
        return rounded(change.name, original, dtype, stochastic=False)
    if feedback is not None:
        found = feedback(change.name, value.mT if change.transposed else value, dtype)
        return found.mT.contiguous() if change.transposed else found
    stochastic = rounding.method != "nearest"
    drawn += [change.name] if stochastic and dtype != torch.float32 else []
    return rounded(change.name, value, dtype, stochastic)


def _kept(name: str, originals: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    original = originals[name].detach()
    return rounded(name, original, dtype, stochastic=False) if original.is_floating_point() else original


def check_mergeable(model: CausalLM) -> None:
    """Refuse adapters that no dense weight can say.

    Raises:
        NotMergeable: names the first site.
    """
    for _, module in adapted(model.hf):
        adapter = module.adapter
        if reason := type(adapter).why_not_merged(adapter.config, adapter.site):
            raise NotMergeable(reason)


def _grouped(changes: list[Change], rounding: Rounding) -> Iterator[tuple[list[Change], dict[str, Feedback]]]:
    """The changes in groups whose input moments fit into memory, with what rounds their layers by feedback."""
    if rounding.method != "feedback" or rounding.moments is None:
        yield changes, {}
        return
    for sites in groups([change.layer for change in changes if change.layer is not None]):
        names = {site.name for site in sites}
        ready = rounders(rounding.moments(sites))
        yield [change for change in changes if change.layer is not None and change.layer.name in names], ready
    yield [change for change in changes if change.layer is None], {}
