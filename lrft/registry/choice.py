"""A place in a recipe where a method is chosen by its name, and parsed by that method's own settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError
from pydantic_core.core_schema import no_info_plain_validator_function

from lrft.registry.did_you_mean import did_you_mean
from lrft.registry.section import MethodConfig

if TYPE_CHECKING:
    from lrft.registry.registry import Registry


@dataclass(frozen=True)
class Choice:
    """`Annotated[AdapterConfig, Choice(ADAPTERS)]`: `dora`, or `{method: dora, rank: 8}`, parsed by its own `Config`.

    Staying in the annotation's metadata, it is also where messages and the JSON schema find the registry.
    """

    registry: Registry
    optional: bool = False

    def parse(self, value: object) -> MethodConfig | None:
        """The method's settings; None where the choice is optional and null is written."""
        return None if value is None and self.optional else parse_choice(self.registry, value)

    def __get_pydantic_core_schema__(self, source: type[object], handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_plain_validator_function(self.parse)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Each method's name, or its settings; `lrft recipes schema` spells the settings out."""
        names = self.registry.names()
        return {"anyOf": [{"enum": names}, {"type": "object", "properties": {"method": {"enum": names}}}]}


def parse_choice(registry: Registry, value: object) -> MethodConfig:
    """The `Config` of the method that `value` names in `registry`, validated.

    Raises pydantic errors, so that a recipe's problems are collected in one pass.
    """
    if isinstance(value, MethodConfig):
        return value
    if isinstance(value, str):
        value = {"method": value}
    if not isinstance(value, dict):
        raise PydanticCustomError(
            "choice", f"expected the name of a {registry.kind} or a section with `method`"
        )
    name = value.get("method")
    if not isinstance(name, str):
        raise PydanticCustomError(
            "choice", f"`method` must name one {registry.kind}: {', '.join(registry.names())}"
        )
    if name not in registry.names():
        # Braces would be read as a template by pydantic, hence the context.
        raise PydanticCustomError(
            "unknown_method",
            "{text}",
            {
                "text": f"unknown {registry.kind} {name!r}{did_you_mean(name, registry.names())}",
                "below": "method",
            },
        )
    return registry.declared(name).config.model_validate(value)
