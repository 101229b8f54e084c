"""An adapter asked once, at the smallest site of a model: whether it is what its author's file says it is.

So a shape, a count or a parameter that is not what the contract asks for is told by a dry run, with the line to mend.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn, TypeVar

import torch
from torch import Tensor, nn

from lrft.build.adapt import Adaptation
from lrft.build.source_lines import files_of, inside, place
from lrft.build.trial import Hollow, Storage
from lrft.core.adapter import Adapter, Branch, LowRank
from lrft.core.features import passing
from lrft.core.params import Site
from lrft.core.stages import Plan
from lrft.recipe.schema import Recipe
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig
from lrft.registry.errors import LrftError, NotMergeable, Problem, RecipeError

T = TypeVar("T")
TOKENS = 2


def ask_adapter(recipe: Recipe, adaptation: Adaptation) -> None:
    """Make the recipe's adapter at one site of the model, of random weights, and ask all that the contract names.

    No draw of the training is used up, and nothing is attached.

    Raises:
        RecipeError: it is not what it says; with the file and line of the method, and what to write.
    """
    site = _smallest(adaptation.plan)
    if recipe.adapter is None or site is None:
        return
    config = adaptation.plan[site.name].config
    assert config is not None
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(recipe.train.seed)
        hidden = adaptation.model.hf.config.get_text_config().hidden_size
        Asked(ADAPTERS.get(recipe.adapter.method), config, recipe.adapter, site).all(hidden)


def _smallest(plan: Plan) -> Site | None:
    """The linear site of fewest numbers; None where the adapter goes on whole blocks alone."""
    sites = [entry.site for entry in plan.values() if entry.config is not None and entry.site.is_matrix]
    return min(sites, key=lambda site: (site.in_features * site.out_features, site.name), default=None)


class Asked:
    """An adapter class with the settings of one site."""

    def __init__(
        self, kind: type[Adapter], config: AdapterConfig, section: AdapterConfig, site: Site
    ) -> None:
        self.kind, self.config, self.section, self.site = kind, config, section, site

    def all(self, hidden: int) -> None:
        """Every question in turn; the first wrong answer is raised."""
        kind, site = self.kind, self.site
        shared = self.call("shared", lambda: kind.shared(self.section, {site.name: site}, hidden))
        part = self.call("__init__", lambda: kind.at(self.config, site, shared))
        self.registered(part, set() if shared is None else {*shared.modules(), *shared.parameters()})
        self.counted(part, shared is not None)
        weight = torch.randn(site.out_features, site.in_features) / site.in_features**0.5
        self.call("start", lambda: part.start(weight))
        if isinstance(part, LowRank):
            self.branch(part)
        mergeable = "mergeable" in part.provides
        if mergeable:
            self.delta(part, weight)
        if shared is None or mergeable:  # else a router over the whole model has a say in the forward pass
            self.forward(part, weight)

    def registered(self, part: Adapter, shared: set[object]) -> None:
        """No tensor or module of it is hidden from torch, but what all sites share."""
        for key, value in vars(part).items():
            if key in ("_parameters", "_buffers", "_modules"):
                continue
            if isinstance(value, Tensor):
                what = f'write self.{key} = nn.Parameter(...), or self.register_buffer("{key}", ...) if it is constant'
                self.wrong(
                    f"self.{key} is a plain tensor, which is neither trained nor saved; {what}", key=key
                )
            held = (
                value.values()
                if isinstance(value, dict)
                else value
                if isinstance(value, list | tuple)
                else ()
            )
            if any(isinstance(one, nn.Parameter | nn.Module) and one not in shared for one in held):
                kind = "Dict" if isinstance(value, dict) else "List"
                remedy = f"write it as nn.Parameter{kind} or nn.Module{kind}"
                self.wrong(f"self.{key} hides its parameters from torch; {remedy}", key=key)

    def counted(self, part: Adapter, shares: bool) -> None:
        """`count` is the number of numbers that train; none where only what sites share does."""
        trained = {name: p for name, p in part.named_parameters() if p.requires_grad}
        there = sum(p.numel() for p in trained.values())
        said = self.call("count", lambda: self.kind.count(self.config, self.site))
        if not trained and not shares:
            self.wrong("has no parameter that trains; write one in __init__ as nn.Parameter(...)")
        if type(said) is not int:
            self.wrong(f"count gives {said!r}; write one that returns an int", "count")
        if said != there:
            shapes = ", ".join(f"{name} {tuple(p.shape)}" for name, p in trained.items())
            self.wrong(
                f"count says {said:,} numbers and {there:,} train ({shapes}); write the count of these",
                "count",
            )

    def branch(self, part: LowRank) -> None:
        """The factors are (k, in) and (out, k)."""
        found = self.call("branch", part.branch)
        if not isinstance(found, Branch):
            self.wrong(
                f"branch gives {type(found).__name__}; write return Branch(A, B, self.scaling)", "branch"
            )
        down, up = self.call("branch", found.pair)
        fits = down.ndim == up.ndim == 2 and down.shape[1] == self.site.in_features
        if not (fits and up.shape == (self.site.out_features, down.shape[0])):
            wanted = f"(k, {self.site.in_features}) and (out, k), here ({self.site.out_features}, k)"
            given = f"{tuple(down.shape)} and {tuple(up.shape)}"
            self.wrong(
                f"branch gives factors of shapes {given}; write them as (k, in), here {wanted}", "branch"
            )

    def delta(self, part: Adapter, weight: Tensor) -> None:
        """The change has the shape of the weight."""
        try:
            change = self.call("delta_weight", lambda: part.delta_weight(weight))
        except NotMergeable:
            remedy = 'write delta_weight(self, weight), or take "mergeable" out of provides'
            self.wrong(f"provides mergeable and says no change of the weight; {remedy}")
        self.shape(change, tuple(weight.shape), "delta_weight", "(out, in)")
        if self.kind.forward is Adapter.forward and not change.requires_grad:
            self.unused([name for name, p in part.named_parameters() if p.requires_grad])

    def forward(self, part: Adapter, weight: Tensor) -> None:
        """Tokens go through, and what trains has a part in what comes out."""
        layer = nn.Linear(self.site.in_features, self.site.out_features, bias=self.site.has_bias)
        layer.weight = nn.Parameter(weight, requires_grad=False)
        layer.requires_grad_(False)
        x = torch.randn(1, TOKENS, self.site.in_features, requires_grad=True)
        with passing([self.kind.row_features(self.config)]):
            y = self.call("forward", lambda: part(x, Hollow(layer, Storage(True))))
        self.shape(y, (1, TOKENS, self.site.out_features), "forward", "(..., out)")
        trained = {name: p for name, p in part.named_parameters() if p.requires_grad}
        if y.requires_grad:
            grads = torch.autograd.grad(y.sum(), list(trained.values()), allow_unused=True)
            unused = [name for name, grad in zip(trained, grads, strict=True) if grad is None]
        else:
            unused = list(trained)
        if unused:
            self.unused(unused)

    def unused(self, names: list[str]) -> NoReturn:
        """Refuse parameters that get no gradient."""
        remedy = "use it in the formula without .data, .detach() or .item(), or make it a buffer"
        self.wrong(f"{', '.join(names)} trains and has no part in the output; {remedy}", key=names[0])

    def shape(self, given: object, wanted: tuple[int, ...], method: str, words: str) -> None:
        """Refuse what is no tensor of the shape."""
        if not isinstance(given, Tensor):
            self.wrong(
                f"{method} gives {type(given).__name__}; write one that returns a tensor {words}", method
            )
        if tuple(given.shape) != wanted:
            self.wrong(
                f"{method} gives shape {tuple(given.shape)}; write it as {words}, here {wanted}", method
            )

    def call(self, method: str, ask: Callable[[], T]) -> T:
        """What a method of the class answers; what it raises is told with the line that did."""
        try:
            return ask()
        except LrftError:
            raise
        except Exception as error:
            if isinstance(error, ValueError) and method == "__init__":
                raise RecipeError(f"{self.site.name}: {error}", "adapter") from None
            said = str(error).splitlines()[0] if str(error) else "no message"
            if isinstance(error, NotImplementedError):
                self.wrong(f"{said}; write it", key=None)
            where = inside(error, files_of(self.kind)) or place(self.kind, method, None)
            asked = f"of {self.site.name}, {self.site.in_features} in and {self.site.out_features} out"
            text = f"{self.kind.__name__}.{method} {asked}, raised {type(error).__name__} ({said}); mend this line"
            raise RecipeError(Problem("", text, *where)) from error

    def wrong(self, message: str, method: str | None = None, key: str | None = None) -> NoReturn:
        """Raise a message at the line of a method, or of `self.key = ...`, or of the class."""
        text = f"{self.kind.__name__} at {self.site.name}: {message}"
        raise RecipeError(Problem("", text, *place(self.kind, method, key)))
