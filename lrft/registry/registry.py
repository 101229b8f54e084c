"""Methods are found by file name, and *declared* without being imported.

A method is one file holding one class decorated with `@REGISTRY.register`. What a recipe check needs of it,
its `Config`, `provides`, `requires`, `aliases` and docstring, is read from the source (`declared`), so that checking a
recipe or listing the methods never imports torch; `get` imports the file. A contract test holds the two views equal.
"""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from lrft.registry.config import MethodConfig
from lrft.registry.declared import Declaration, declarations
from lrft.registry.did_you_mean import did_you_mean

__all__ = ["Declaration", "Registry"]

T = TypeVar("T", bound=type)


class Registry:
    """The methods of one axis: the public files of a package, by file name.

    Args:
        kind: what one entry is called in messages ("adapter").
        package: dotted name of the folder that holds the files.
        config: base class of the entries' `Config`, used by an entry that declares none.
    """

    def __init__(self, kind: str, package: str, config: type[MethodConfig] = MethodConfig) -> None:
        self.kind = kind
        self.package = package
        self.config = config
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
        """The declaration of `name`, read from its source without importing it."""
        module, path = _files(self.package)[name]
        found = [d for d in declarations(module, path, self.config).values() if d.name == name]
        if not found:
            raise TypeError(f"{path.name} registers no {self.kind}")
        return found[0]


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
