"""A part of what was trained, before it is merged: its leading ranks, or what it does for rows of some features."""

from __future__ import annotations

from lrft.core.adapted import adapted
from lrft.model.causal_lm import CausalLM
from lrft.registry.errors import UsageError


def only_rows_with(model: CausalLM, features: tuple[str, ...]) -> None:
    """Make every adapter that of the rows which have these features, and no others.

    Raises:
        UsageError: the adapters do not go by one of them.
    """
    others = [name for name in features if name not in model.features]
    if others or not features:
        known = ", ".join(model.features)
        remedy = f"goes by {known}; write some of these" if known else "goes by no feature; leave it out"
        raise UsageError(f"--features {','.join(others)}: the adapter {remedy}")
    for _, module in adapted(model.hf):
        module.adapter = module.adapter.of_features(features)
    model.features = ()


def truncate(model: CausalLM, rank: int) -> None:
    """Keep the leading `rank` components of every adapter.

    Raises:
        UsageError: the adapter's components are not nested, or there are fewer.
    """
    for site, module in adapted(model.hf):
        adapter = module.adapter
        if "nested" not in adapter.provides:
            raise UsageError(
                f"--rank {rank}: a part of a {adapter.name} adapter is no adapter; leave the option out, or train one "
                "whose ranks are nested"
            )
        try:
            adapter.truncate(rank)
        except ValueError as error:
            raise UsageError(f"--rank {rank}: {site}: {error}") from None
