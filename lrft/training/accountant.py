"""What a number of private steps is worth, by Opacus' accountants."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from lrft.registry.errors import MissingExtra, RecipeError


class Spent(NamedTuple):
    """Private steps that were alike.

    Attributes:
        noise: standard deviation of the noise, in units of the largest norm of a row's gradient.
        rate: with what probability each row was in a step.
        steps: how many.
    """

    noise: float
    rate: float
    steps: int


def epsilon_of(spent: Sequence[Spent], delta: float, accountant: str) -> float:
    """The epsilon at `delta` of all these steps together; 0 of none.

    Args:
        accountant: `rdp` or `prv`.

    Raises:
        MissingExtra: Opacus is not installed.
    """
    history = [part for part in spent if part.steps]
    if not history:
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that another order might be tighter: the bound holds
        if accountant == "rdp":
            found, _ = _accountants().analysis.rdp.get_privacy_spent(
                orders=_orders(),
                rdp=sum(part.steps * _renyi(part.noise, part.rate) for part in history),
                delta=delta,
            )
            return float(found)
        made = _accountants().create_accountant(accountant)
        made.history = [tuple(part) for part in history]
        return float(made.get_epsilon(delta=delta))


def noise_for(epsilon: float, delta: float, rate: float, steps: int, accountant: str) -> float:
    """The least noise, to 0.01 in epsilon, with which so many steps come to no more than `epsilon`.

    Raises:
        RecipeError: no noise that Opacus tries is enough.
        MissingExtra: Opacus is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = _accountants().utils.get_noise_multiplier(
                target_epsilon=epsilon,
                target_delta=delta,
                sample_rate=rate,
                steps=steps,
                accountant=accountant,
            )
        except ValueError as error:
            raise RecipeError(
                f"no noise brings {steps} steps down to {epsilon:g} at delta {delta:g} ({error}); write a larger "
                "epsilon, or fewer steps",
                "privacy.epsilon",
            ) from None
    return float(found)


def check_installed() -> None:
    """Refuse before anything is read where Opacus is not there.

    Raises:
        MissingExtra: the message holds the install line.
    """
    _accountants()


@lru_cache(maxsize=1024)
def _renyi(noise: float, rate: float) -> Any:
    """Of one step, at every order, (orders,): most of an accountant's work, and the same for every step."""
    return _accountants().analysis.rdp.compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=_orders())


def _orders() -> Any:
    return _accountants().RDPAccountant.DEFAULT_ALPHAS


def _accountants() -> Any:
    try:
        from opacus import accountants
    except ImportError:
        raise MissingExtra(
            "privacy: what private steps are worth is computed by Opacus; install it with `pip install 'lrft[privacy]'`"
        ) from None
    return accountants
