"""The JSON schema of a recipe, for editors: every section, and every registered method's settings."""

from __future__ import annotations

from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo

from lrft.recipe.fields import Slot, slot_of
from lrft.recipe.schema import Recipe
from lrft.registry.config import OneOrMore, Section, Source
from lrft.registry.registry import Registry
from lrft.registry.section import LARGEST, MOST_COUNTED

Schema = dict[str, Any]


def recipe_schema() -> Schema:
    """JSON schema (draft 2020-12) of a recipe file, short forms included."""
    definitions: Schema = {}
    schema = _section(Recipe, definitions)
    schema["properties"]["extends"] = {"type": "string", "description": "recipe this one is laid over"}
    # A recipe that extends another may leave out what its parent says.
    del schema["required"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "$defs": definitions}


def _section(section: type[Section], definitions: Schema) -> Schema:
    schema = section.model_json_schema(ref_template="#/$defs/{model}")
    for name in schema.pop("$defs", {}):
        definitions.setdefault(name, {})
    for name, field in section.model_fields.items():
        replacement = _chosen(slot_of(field), definitions)
        if replacement is not None:
            schema["properties"][name] = replacement | _described(field)
        _define(slot_of(field), definitions)
    _bound(schema["properties"])
    return schema


def _bound(schema: Any) -> None:
    """Write the bounds that every setting has wherever a number stands without its own."""
    if isinstance(schema, list):
        for item in schema:
            _bound(item)
    if not isinstance(schema, dict):
        return
    bound = {"integer": MOST_COUNTED, "number": LARGEST}.get(str(schema.get("type")))
    if bound is not None and not {"maximum", "exclusiveMaximum"} & schema.keys():
        schema["maximum"] = bound
    if bound is not None and not {"minimum", "exclusiveMinimum"} & schema.keys():
        schema["minimum"] = -bound
    for value in schema.values():
        _bound(value)


def _described(field: FieldInfo) -> Schema:
    return {"description": field.description} if field.description else {}


def _define(slot: Slot, definitions: Schema) -> None:
    """Fill in the definition of a section below, or of those in a list, once."""
    if get_origin(slot.annotation) is list:
        return _define(Slot.of(get_args(slot.annotation)[0]), definitions)
    section = slot.section(None) if slot.registry is None else None
    if section is None or definitions.get(section.__name__):
        return
    definitions[section.__name__] = {"description": section.__doc__}  # guards against a section inside itself
    schema = _section(section, definitions)
    short = hasattr(section, "_from_string")
    definitions[section.__name__] = {"anyOf": [{"type": "string"}, schema]} if short else schema


def _chosen(slot: Slot, definitions: Schema) -> Schema | None:
    """The schema of a choice, of a list of choices, or of one or more sections; None for anything else."""
    several = next((item for item in slot.metadata if isinstance(item, OneOrMore)), None)
    if several is not None:
        return _one_or_more(several, definitions)
    if slot.registry is not None:
        default = slot.field.default if slot.field is not None and not slot.field.is_required() else None
        return {"anyOf": _choices(slot.registry, default, definitions)}
    if get_origin(slot.annotation) is list:
        items = _chosen(Slot.of(get_args(slot.annotation)[0]), definitions)
        return {"type": "array", "items": items} if items is not None else None
    return None


def _one_or_more(several: OneOrMore, definitions: Schema) -> Schema:
    for section in (Source, several.item):
        _define(Slot(section), definitions)
    one, item = ({"$ref": f"#/$defs/{section.__name__}"} for section in (Source, several.item))
    found = [one, {"type": "array", "minItems": 1, "items": item}]
    return {"anyOf": [*found, {"type": "null"}] if several.optional else found}


def _choices(registry: Registry, default: str | None, definitions: Schema) -> list[Schema]:
    found: list[Schema] = [{"enum": registry.names()}]
    for name in registry.names():
        declared = registry.declared(name)
        schema = _section(declared.config, definitions)
        schema["title"], schema["description"] = name, declared.summary
        schema["properties"]["method"] = {"const": name}
        if name != default:
            schema["required"] = ["method", *schema.get("required", [])]
        found.append(schema)
    return found
