"""Methods are found by file name, and *declared* without being imported.

A method is one file holding one class decorated with `@REGISTRY.register`. What a recipe check needs of it,
its `Config`, `provides`, `requires`, `aliases` and docstring, is read from the source (`declared`), so that checking a
recipe or listing the methods never imports torch; `get` imports the file. A contract test holds the two views equal.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from lrft.registry.config import MethodConfig
from lrft.registry.declared import Declaration, declarations
from lrft.registry.did_you_mean import a, did_you_mean
from lrft.registry.errors import Problem, RecipeError

__all__ = ["Declaration", "Registry"]

T = TypeVar("T", bound=type)


class Registry:
    """The methods of one axis: the public files of a package, by file name.

    Args:
        kind: what one entry is called in messages ("adapter").
        package: dotted name of the folder that holds the files.
        config: base class of the entries' `Config`, used by an entry that declares none.
        owes: what every entry says for itself -> what to write, of what its contract has no answer to.
    """

    def __init__(
        self,
        kind: str,
        package: str,
        config: type[MethodConfig] = MethodConfig,
        owes: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.kind = kind
        self.package = package
        self.config = config
        self.owes = owes
        self._classes: dict[str, type] = {}

    def names(self) -> list[str]:
        """Every registered name, sorted. Reads the folder, imports nothing."""
        return sorted(_files(self.package))

    def register(self, cls: T) -> T:
        """Class decorator: the registered name is the file name."""
        name = cls.__module__.rpartition(".")[2]
        cls.name = name  # type: ignore[attr-defined]
        self._classes[name] = cls
        return cls

    def get(self, name: str) -> Any:
        """The class registered as `name`, importing its file.

        Raises:
            KeyError: no file of that name; the message suggests near ones.
        """
        if name not in self._classes:
            files = _files(self.package)
            if name not in files:
                raise KeyError(f"unknown {self.kind} {name!r}{did_you_mean(name, files)}")
            importlib.import_module(files[name][0])
        return self._classes[name]

    def settings(self, name: str, **values: object) -> MethodConfig:
        """The validated settings of `name`, as its constructor takes them: `ADAPTERS.settings("lora", rank=8)`."""
        return self.declared(name).config(method=name, **values)

    def declared(self, name: str) -> Declaration:
        """The declaration of `name`, read from its source without importing it.

        Raises:
            RecipeError: the source cannot be read so; with its line and what to write.
        """
        module, path = _files(self.package)[name]
        found = [d for d in declarations(module, path, self.config).values() if d.name == name]
        if not found:
            remedy = f"write @{self._constant()}.register above its class"
            message = f"no class of this file is registered as {a(self.kind)}; {remedy}"
            raise RecipeError(Problem("", message, str(path), 1))
        return found[0]

    def unfinished(self, name: str) -> list[Problem]:
        """What the source of `name` still owes, each with its line and what to write."""
        declared = self.declared(name)
        found = []
        if not declared.summary:
            found.append(
                "has no docstring; write one under its class line, the first line a sentence that says what it is"
            )
        found += [
            f"says no {owed}; write {remedy}"
            for owed, remedy in self.owes.items()
            if owed not in declared.says
        ]
        return [
            Problem("", f"{declared.class_name} {text}", str(declared.path), declared.line) for text in found
        ]

    def _constant(self) -> str:
        """The registry's name in `lrft.registry.axes`."""
        axes = sys.modules.get("lrft.registry.axes")
        return next((name for name, held in vars(axes).items() if held is self), "REGISTRY")


@cache
def _files(package: str) -> dict[str, tuple[str, Path]]:
    """Registered name -> (module, path): the files of a package and its subfolders, helpers (`_x.py`) left out."""
    root = Path(__file__).parents[1].joinpath(*package.split(".")[1:])
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if not any(part.startswith("_") for part in parts):
            found[parts[-1]] = (".".join((package, *parts)), path)
    return found
