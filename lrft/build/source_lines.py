"""Where in a method's own file something stands: what a message to its author names."""

from __future__ import annotations

import ast
import inspect
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def files_of(kind: type) -> list[str]:
    """The files of a class and its parents, this package's core and torch left out."""
    own = kind.__module__.rpartition(".")[0]
    return [inspect.getfile(cls) for cls in kind.__mro__ if cls.__module__.startswith(f"{own}.")]


def inside(error: Exception, files: Iterable[str]) -> tuple[str, int] | None:
    """The innermost line of an error that stands in one of these files."""
    held = set(files)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in held]
    return (frames[-1].filename, frames[-1].lineno or 1) if frames else None


def place(kind: type, method: str | None, key: str | None) -> tuple[str, int]:
    """File and line of a method of a class, of where it sets `self.key`, or else of the class itself."""
    for cls in kind.__mro__:
        path = Path(inspect.getfile(cls)) if cls.__module__ != "builtins" else None
        if path is None or str(path) not in files_of(kind):
            continue
        for node in _body(path, cls.__name__):
            if method is not None and isinstance(node, ast.FunctionDef) and node.name == method:
                return str(path), node.lineno
            if key is not None and key in _set_by(node):
                return str(path), node.lineno
    path = Path(inspect.getfile(kind))
    named = [
        node for node in ast.parse(path.read_text("utf-8")).body if getattr(node, "name", "") == kind.__name__
    ]
    return str(path), named[0].lineno if named else 1


def _body(path: Path, name: str) -> Iterator[Any]:
    """Everything below a class of a file."""
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            yield from ast.walk(node)


def _set_by(node: ast.AST) -> list[str]:
    """The attributes that an assignment gives `self`."""
    targets = (
        node.targets
        if isinstance(node, ast.Assign)
        else [node.target]
        if isinstance(node, ast.AnnAssign)
        else []
    )
    return [target.attr for target in targets if isinstance(target, ast.Attribute)]
