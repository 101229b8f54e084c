"""The roles that the parameters of a method have, read from its source: what optimizers tell parameters by."""

from __future__ import annotations

import ast
from collections.abc import Collection, Sequence

Roles = frozenset[str] | None
"""None where only running the file would tell."""


def roles_of(node: ast.ClassDef, parents: Sequence[Roles]) -> Roles:
    """Those that a class says, else those of its parents."""
    found: Roles = frozenset[str]()
    for roles in parents:
        found = None if found is None or roles is None else found | roles
    for item in ast.walk(node):
        if isinstance(item, ast.Assign) and any(map(_is_roles, item.targets)):
            found = _values(item.value) if item in node.body else None
    return found


def with_parts(own: Roles, parts: Collection[Roles]) -> Roles:
    """With those of the other classes of its file, which may be parts of it that its sites share."""
    if not own or None in parts:  # what says nothing may have those of a class of core/
        return None
    return own.union(*(part for part in parts if part is not None))


def _is_roles(target: ast.expr) -> bool:
    return (isinstance(target, ast.Name) and target.id == "roles") or (
        isinstance(target, ast.Attribute) and target.attr == "roles"
    )


def _values(value: ast.expr) -> Roles:
    try:
        return frozenset(ast.literal_eval(value).values())
    except (ValueError, AttributeError, TypeError):
        return None
