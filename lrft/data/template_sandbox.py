"""The sandbox that chat templates run in: jinja's own, in which every step is paid for from a `Budget`.

    for, macro, call          a step, and the text that stands in the body
    {{ x }}, ~, slices        the characters that are written
    + * ** %, str methods,    what the result will have, before it is made: one operation in C cannot be stopped
    filters

What a template within the limits writes is what it writes in transformers.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Template, nodes, pass_context
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from lrft.data.template_budget import Budget, TooMuch, given_size
from lrft.data.template_costs import (
    before_filter,
    before_format,
    before_function,
    before_method,
    before_operator,
)
from lrft.data.template_metering import Metered

LONGEST = 400_000  # characters of a template; the longest that ship have some 30,000
NO_METHODS = {"to_bytes", "from_bytes"}  # of numbers: bytes without end


class BoundedTemplate:
    """A compiled template that renders within a budget of its own each time."""

    def __init__(self, template: Template) -> None:
        self.template = template

    def render(self, **given: Any) -> str:
        """The text.

        Raises:
            TooMuch: the template takes more than a rendering may.
        """
        environment = self.template.environment
        assert isinstance(environment, BoundedEnvironment)
        with environment.paying(Budget(given_size(given))):
            return self.template.render(**given)


def check_length(source: str) -> None:
    """Refuse a template that is too long to compile.

    Raises:
        TooMuch: it is.
    """
    if len(source) > LONGEST:
        raise TooMuch(f"it has {len(source):,} characters; at most {LONGEST:,} are allowed")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """An environment whose templates pay for what they do. Nothing is computed while a template is compiled."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.optimized = False
        self.finalize = _written
        self.filters = _Filters(self, self.filters)
        tests: dict[str, Any] = dict(self.tests)
        self.tests = {name: _stepped(self, test) for name, test in tests.items()}
        self._paid = threading.local()

    @property
    def budget(self) -> Budget:
        """Of the rendering that this thread is in."""
        budget: Budget = self._paid.budget
        return budget

    def paying(self, budget: Budget) -> _Paying:
        """Render within a budget."""
        return _Paying(self._paid, budget)

    def charged(self, value: Any) -> Any:
        """The value, paid for."""
        self.budget.charge(value)
        return value

    def step(self, characters: int) -> None:
        """One turn of a loop, or one call of a macro, whose body has so much text of its own."""
        self.budget.spend(characters)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        before_operator(self.budget, operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        budget = __self.budget
        owner = getattr(__obj, "__self__", None)
        if owner is __self:
            return __obj(*args)
        budget.spend(0)
        named = {
            name: value for name, value in kwargs.items() if not name.startswith("_")
        }  # jinja adds its own
        if isinstance(owner, str | bytes):
            args = before_method(budget, owner, __obj.__name__, args, named)
        else:
            before_function(__obj, args, named)
        found = super().call(__context, __obj, *args, **kwargs)
        return found if isinstance(found, Namespace) else __self.charged(found)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def within(*args: Any, **kwargs: Any) -> str:
            before_format(self.budget, value.__self__, (args, kwargs))
            return wrapped(*args, **kwargs)

        return within

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if attr in NO_METHODS and isinstance(obj, int):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(Metered().visit(source), *args, **kwargs)


@pass_context
def _written(context: Context, value: Any) -> Any:
    """What `{{ value }}` writes, paid for; as it needs the context, jinja asks for it at every rendering."""
    environment = context.environment
    assert isinstance(environment, BoundedEnvironment)
    budget = environment.budget
    budget.spend(len(value) if isinstance(value, str) else budget.size(value))
    return value


def _stepped(environment: BoundedEnvironment, test: Callable[..., Any]) -> Callable[..., Any]:
    """A test that counts as a step: `select` asks it of every item, without a loop of the template."""

    @functools.wraps(test)
    def stepped(*args: Any, **kwargs: Any) -> Any:
        environment.step(0)
        return test(*args, **kwargs)

    return stepped


class _Paying:
    def __init__(self, paid: threading.local, budget: Budget) -> None:
        self.paid, self.budget = paid, budget

    def __enter__(self) -> None:
        self.paid.budget = self.budget

    def __exit__(self, *_: object) -> None:
        del self.paid.budget


class _Filters(dict[str, Callable[..., Any]]):
    """Filters by name, each paid for."""

    def __init__(self, environment: BoundedEnvironment, filters: Mapping[str, Callable[..., Any]]) -> None:
        super().__init__()
        self.environment = environment
        for name, function in filters.items():
            self[name] = function

    def __setitem__(self, name: str, function: Callable[..., Any]) -> None:
        environment, first = self.environment, int(hasattr(function, "jinja_pass_arg"))

        @functools.wraps(function)
        def paid(*args: Any, **kwargs: Any) -> Any:
            given, rest = args[:first], args[first:]
            return environment.charged(
                function(*given, *before_filter(environment.budget, name, rest, kwargs), **kwargs)
            )

        super().__setitem__(name, paid)
