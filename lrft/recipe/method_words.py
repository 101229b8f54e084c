"""A method and its settings as the words of a command line, for axes that no recipe has."""

from __future__ import annotations

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from lrft.recipe.catalog import called
from lrft.recipe.document import parse
from lrft.recipe.fields import Slot
from lrft.recipe.tree import Place
from lrft.registry.choice import parse_choice
from lrft.registry.config import MethodConfig
from lrft.registry.did_you_mean import did_you_mean
from lrft.registry.errors import UsageError
from lrft.registry.registry import Registry


def parse_named(registry: Registry, text: str) -> MethodConfig:
    """The settings of the method that is named: `NAME`, or `{method: NAME, ...}` as recipes write sections.

    Raises:
        UsageError: there is no such method, or it has no such setting or value.
        RecipeError: the text is no YAML.
    """
    node, problems = parse(text, Place("--method"))
    if problems:
        raise UsageError(f"--method {text}: {problems[0].message}")
    plain = node.plain()
    name = plain.get("method") if isinstance(plain, dict) else plain
    if isinstance(name, str) and (meant := called(registry, name)):
        raise UsageError(f"--method {text}: is called {meant} here; write --method {meant}")
    try:
        return parse_choice(registry, plain)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        said = _sentence(registry, plain, first["type"], first["loc"], first["msg"])
        raise UsageError(f"--method {text}: {said}") from None
    except PydanticCustomError as error:
        raise UsageError(f"--method {text}: {error.message()}") from None


def _sentence(registry: Registry, plain: object, kind: str, loc: tuple[int | str, ...], message: str) -> str:
    """What is wrong with a setting, as recipes are told it."""
    name = plain.get("method") if isinstance(plain, dict) else plain
    config = registry.declared(str(name)).config
    key = str(loc[0]) if loc else ""
    if kind == "extra_forbidden":
        known = [field for field in config.model_fields if field != "method"]
        return f"{key} is no setting of {name}{did_you_mean(key, known) if known else ', which has none'}"
    if kind == "value_error" or key not in config.model_fields:
        return message.removeprefix("Value error, ")
    field = config.model_fields[key]
    return f"{key} must be {Slot.of(field.annotation, tuple(field.metadata), field).words()}"
