"""An adapter that was trained before, handed to those of a new run: as it is, by its factors, or cut to their rank."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lrft.core.adapted import Adapted, adapted
from lrft.core.adapter import Adapter, Additive, Factors, LowRank
from lrft.model.causal_lm import CausalLM
from lrft.registry.errors import RecipeError

KEY = "model.adapter"
EXACT = 1e-4  # relative; factors are multiplied in float32


@dataclass(frozen=True)
class Trained:
    """An adapter at one site, trained before.

    Attributes:
        adapter: on the CPU, with its tensors.
        start: what it started with, which its base had given up; its change is counted from there.
        change: what restarts moved into its base, as factors or dense (out, in).
    """

    adapter: Adapter
    start: Additive | None = None
    change: Factors | Tensor | None = None

    @property
    def whole(self) -> bool:
        """Whether the adapter alone is the whole change."""
        return self.start is None and self.change is None

    def factors(self) -> Factors | None:
        """A (k, in) and B (out, k), float32, of the change of the original weight; None where it has none."""
        if not isinstance(self.adapter, Additive) or isinstance(self.change, Tensor):
            return None
        pair = self.adapter.factors(self.start) if "linear_delta" in self.adapter.provides else None
        if pair is None or self.change is None:
            return pair
        return torch.cat([pair[0], self.change[0]]), torch.cat([pair[1], self.change[1]], dim=1)

    def dense(self, weight: Tensor) -> Tensor:
        """The change of the original `weight` (out, in), float32, in its shape."""
        more = self.change[1] @ self.change[0] if isinstance(self.change, tuple) else self.change
        changed = weight if more is None else weight + more
        found = self.adapter.delta_weight(changed)
        found = found if self.start is None else found - self.start.delta_weight(weight)
        return found if more is None else found + more


@dataclass
class Taken:
    """What was taken over: sites by how, the squares of what was cut off and of the changes, the site cut most."""

    sites: dict[str, list[str]] = field(default_factory=dict)
    lost: float = 0.0
    total: float = 0.0
    worst: tuple[float, str] = (0.0, "")

    @property
    def error(self) -> float:
        """Relative error of the change over all sites, Frobenius norms."""
        return float((self.lost / self.total) ** 0.5) if self.total else 0.0


@torch.no_grad()
def take_over(model: CausalLM, given: Mapping[str, Trained]) -> Taken:
    """Let every adapter of the model begin with what was trained at its site; others keep the start they have.

    Raises:
        RecipeError: an adapter cannot begin with what is given at its site, or a site of it is no adapted one.
    """
    sites = dict(adapted(model.hf))
    check_sites(given, sites)
    taken = Taken()
    for name, trained in given.items():
        module = sites[name]
        how = _hand(name, trained, module)
        taken.sites.setdefault(how, []).append(name)
        if how == "cut":
            _count_loss(name, trained, module, taken)
    return taken


def check_sites(given: Collection[str], sites: Collection[str]) -> None:
    """Refuse to leave a part of what was trained behind.

    Raises:
        RecipeError: names a site that gets no adapter.
    """
    if strange := [name for name in given if name not in sites]:
        raise RecipeError(
            f"changes {strange[0]}, which gets no adapter here ({len(strange)} of {len(given)} sites); name it in "
            "adapter.targets, or use an adapter of this model",
            KEY,
        )


def _hand(name: str, trained: Trained, module: Adapted) -> str:
    """Set one adapter; how it was done: `same`, `factors`, or `cut` to a lower rank."""
    part, own = module.adapter, trained.adapter
    twins = type(own) is type(part) and trained.whole
    if twins and _settings(own) == _settings(part):
        part.load_state_dict(own.state_dict())
        return "same"
    takes = {"trained_pair", "low_rank"} <= type(part).provides
    if not takes or "mergeable" not in own.provides or _moves_bias(own, module):
        raise RecipeError(_refusal(name, own, part), KEY)
    if reason := type(own).why_not_merged(own.config, own.site):
        raise RecipeError(f"{part.name} cannot begin with what no weight says: {reason}", KEY)
    weight = module.base.weight().float()
    held_A, held_B = part.get_parameter("A"), part.get_parameter("B")
    rank, pair = held_A.shape[0], _pair(trained, twins)
    exact = pair is not None and pair[0].shape[0] <= rank
    A, B = pair if pair is not None and exact else _cut(pair, trained, weight, rank)
    k = A.shape[0]
    held_A[:k], held_B[:, :k] = A.to(held_A.device), (B / part.scaling).to(held_B.device)
    held_B[:, k:] = 0
    part.start(module.base.weight())
    if twins:  # what the method has beside its factors, such as magnitudes
        rest = {key: value for key, value in own.state_dict().items() if key not in "AB"}
        part.load_state_dict({**part.state_dict(), **rest})
    if exact:
        _prove(name, trained, part, weight)
    return "factors" if exact else "cut"


def _moves_bias(own: Adapter, module: Adapted) -> bool:
    """Whether what was trained changes the bias too, which no factors say."""
    return module.held_bias is not None and own.delta_bias(torch.zeros(own.site.out_features)) is not None


def _settings(part: Adapter) -> dict[str, object]:
    return {**part.config.deciding(part.site.name)}


def _pair(trained: Trained, twins: bool) -> Factors | None:
    """The factors that say it all, at any rank; of two of one method that has more than factors, those beside it."""
    own = trained.adapter
    if twins and isinstance(own, LowRank):
        A, B = own.branch().pair()
        return A.float(), own.scaling * B.float()
    return trained.factors()


def _cut(pair: Factors | None, trained: Trained, weight: Tensor, rank: int) -> Factors:
    """The nearest factors of this rank in the Frobenius norm, by a singular value decomposition."""
    if pair is None:
        U, S, V = torch.linalg.svd(trained.dense(weight.cpu()), full_matrices=False)
    else:
        (left, L), (right, R) = torch.linalg.qr(pair[1]), torch.linalg.qr(pair[0].mT)
        U, S, V = torch.linalg.svd(L @ R.mT, full_matrices=False)
        U, V = left @ U, V @ right.mT
    root = S[:rank].sqrt()
    return root[:, None] * V[:rank], U[:, :rank] * root


def _prove(name: str, trained: Trained, part: Adapter, weight: Tensor) -> None:
    """Refuse an adapter that does not compute what it was given, which its method's algebra says it would."""
    wanted, got = trained.dense(weight.cpu()), part.delta_weight(weight).float().cpu()
    if (got - wanted).norm() > EXACT * wanted.norm():
        raise RecipeError(_refusal(name, trained.adapter, part), KEY)


def _count_loss(name: str, trained: Trained, module: Adapted, taken: Taken) -> None:
    weight = module.base.weight().float()
    wanted, got = trained.dense(weight.cpu()), module.adapter.delta_weight(weight).float().cpu()
    lost, total = float((got - wanted).square().sum()), float(wanted.square().sum())
    taken.lost, taken.total = taken.lost + lost, taken.total + total
    if total:
        taken.worst = max(taken.worst, ((lost / total) ** 0.5, name))


def _refusal(name: str, own: Adapter, part: Adapter) -> str:
    """Why one method cannot begin with another."""
    if type(own) is type(part):
        differ = sorted(k for k, v in _settings(own).items() if _settings(part).get(k) != v)
        which = (
            f"adapter.{differ[0]}: {_settings(own)[differ[0]]}"
            if differ
            else "the settings that it was trained with"
        )
        return (
            f"{part.name} begins with another {own.name} at {name} only as it is; write {which}, or merge it and name "
            "the merged model as model.name"
        )
    return (
        f"{part.name} cannot begin with a trained {own.name} ({name}); write adapter.method: {own.name}, or merge it "
        "and name the merged model as model.name"
    )
