"""A recipe is kept, sent to trackers and given to others, so none with a secret in it is taken."""

from __future__ import annotations

from collections.abc import Iterator

from lrft.recipe.tree import Keys, Node, dotted
from lrft.registry.errors import Problem
from lrft.registry.secrets import secret_in


def secrets_in(root: Node) -> list[Problem]:
    """A problem for every value that holds a secret; the secret is not in its message."""
    found = []
    for keys, node in _texts(root, ()):
        kind = secret_in(str(node.value))
        if kind is not None:
            remedy = (
                "export it in the environment, where libraries look for it, and take it out of the recipe"
            )
            found.append(
                node.place.problem(dotted(keys), f"holds {kind}, and a recipe is kept as it is; {remedy}")
            )
    return found


def _texts(node: Node, keys: Keys) -> Iterator[tuple[Keys, Node]]:
    if isinstance(node.value, str):
        yield keys, node
    elif isinstance(node.value, dict):
        for key, inner in node.value.items():
            yield from _texts(inner, (*keys, key))
    elif isinstance(node.value, list):
        for place, inner in enumerate(node.value):
            yield from _texts(inner, (*keys, place))
