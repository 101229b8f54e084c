"""The part of Go's template language that a Modelfile of ours is written in, rendered to be compared.

Text, `{{ "text" }}`, `{{ .Content }}`, `{{ .Role }}`, `{{ .System }}`, `{{ .Prompt }}`, `{{ range .Messages }}`,
`{{ if C }}`, `{{ else if C }}`, `{{ else }}`, `{{ end }}`, with C one of `.System`, `not .System`, `eq .Role "NAME"`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence

ACTION = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
TEXT = re.compile(r'"(?:[^"\\]|\\.)*"')
ROLE = re.compile(r'eq \.Role ("(?:[^"\\]|\\.)*")')
FIELDS = {".Content", ".Role", ".System", ".Prompt"}

Scope = Mapping[str, str]
Node = Callable[[Scope, Sequence[Scope]], str]
"""(fields, messages) -> text."""


def quote(text: str) -> str:
    """`text` as it stands in a template: braces that would open an action are quoted."""
    return text.replace("{{", '{{ "{{" }}')


def render(template: str, messages: Sequence[Mapping[str, str]], prompt: str = "") -> str:
    """What Ollama sends for these messages: `.System` is what messages of that role say.

    Raises:
        ValueError: the template holds something that is not of the part above.
    """
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    scope = {".System": system, ".Prompt": prompt}
    inner = [{**scope, ".Role": message["role"], ".Content": message["content"]} for message in messages]
    nodes, rest = _parse(_pieces(template), ())
    if rest:
        raise ValueError("an `end` or `else` stands outside of what it ends")
    return "".join(node(scope, inner) for node in nodes)


def _pieces(template: str) -> list[tuple[bool, str]]:
    """(whether it is an action, what it says), in order."""
    found, at = [], 0
    for match in ACTION.finditer(template):
        found += [(False, template[at : match.start()]), (True, match[1].strip())]
        at = match.end()
    return [*found, (False, template[at:])]


def _parse(
    pieces: list[tuple[bool, str]], ends: tuple[str, ...]
) -> tuple[list[Node], list[tuple[bool, str]]]:
    """Nodes up to an action that begins with one of `ends`, and the pieces from it on."""
    nodes: list[Node] = []
    while pieces:
        (is_action, said), *after = pieces
        if is_action and said.split(" ")[0] in ("end", "else"):
            if said.split(" ")[0] in ends:
                return nodes, pieces
            raise ValueError(f"`{said}` ends nothing")
        if not is_action:
            nodes.append(_text(said))
            pieces = after
        elif said == "range .Messages":
            inside, after = _parse(after, ("end",))
            nodes.append(_range(inside))
            pieces = _after_end(after)
        elif said.startswith("if "):
            node, pieces = _if(said.removeprefix("if "), after)
            nodes.append(node)
        else:
            nodes.append(_value(said))
            pieces = after
    if ends:
        raise ValueError("an `end` is missing")
    return nodes, []


def _if(condition: str, pieces: list[tuple[bool, str]]) -> tuple[Node, list[tuple[bool, str]]]:
    holds = _condition(condition)
    yes, pieces = _parse(pieces, ("end", "else"))
    said = pieces[0][1]
    no: list[Node] = []
    if said.startswith("else if "):
        other, pieces = _if(said.removeprefix("else if "), pieces[1:])
        no = [other]
    elif said == "else":
        no, pieces = _parse(pieces[1:], ("end",))
        pieces = _after_end(pieces)
    else:
        pieces = _after_end(pieces)

    def node(scope: Scope, messages: Sequence[Scope]) -> str:
        return "".join(one(scope, messages) for one in (yes if holds(scope) else no))

    return node, pieces


def _condition(said: str) -> Callable[[Scope], bool]:
    if said == ".System":
        return lambda scope: bool(scope[".System"])
    if said == "not .System":
        return lambda scope: not scope[".System"]
    if found := ROLE.fullmatch(said):
        role = json.loads(found[1])
        return lambda scope: scope.get(".Role") == role
    raise ValueError(f"the condition `{said}` is none that is read here")


def _value(said: str) -> Node:
    if TEXT.fullmatch(said):
        return _text(json.loads(said))
    if said not in FIELDS:
        raise ValueError(f"`{said}` is nothing that is read here")
    return lambda scope, messages: scope[said]


def _text(said: str) -> Node:
    return lambda scope, messages: said


def _range(inside: list[Node]) -> Node:
    return lambda scope, messages: "".join(node(one, messages) for one in messages for node in inside)


def _after_end(pieces: list[tuple[bool, str]]) -> list[tuple[bool, str]]:
    if not pieces or pieces[0][1] != "end":
        raise ValueError("an `end` is missing")
    return pieces[1:]
