"""Methods are found by file name, and *declared* without being imported.

A method is one file holding one class decorated with `@REGISTRY.register`. What a recipe check needs of it,
its `Config`, `provides`, `requires` and docstring, is read from the source (`declared`), so that validating a
recipe or listing the methods never imports torch; `get` imports the file. A contract test holds the two views equal.
"""

from __future__ import annotations

import ast
import importlib
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from lrft.core.config import MethodConfig
from lrft.core.names import did_you_mean

T = TypeVar("T", bound=type)

# Modules a `Config` may draw on. Anything else a method file imports (torch first of all) is not needed to check
# a recipe and is not executed by `declared`.
CONFIG_MODULES = (
    "__future__",
    "fnmatch",
    "lrft.core.axes",
    "lrft.core.config",
    "lrft.core.errors",
    "math",
    "pydantic",
    "re",
    "typing",
)


@dataclass(frozen=True)
class Declaration:
    """What is known of a method before its file is imported."""

    name: str
    class_name: str
    doc: str
    config: type[MethodConfig]
    provides: frozenset[str]
    requires: frozenset[str]
    path: Path

    @property
    def summary(self) -> str:
        """The docstring's first line."""
        return self.doc.strip().splitlines()[0] if self.doc.strip() else ""


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

    def settings(self, name: str, **values: Any) -> MethodConfig:
        """The validated settings of `name`, as its constructor takes them: `ADAPTERS.settings("lora", rank=8)`."""
        return self.declared(name).config(method=name, **values)

    def declared(self, name: str) -> Declaration:
        """The declaration of `name`, read from its source without importing it."""
        module, path = _files(self.package)[name]
        declarations = _declarations(module, path, self.config)
        found = [d for d in declarations.values() if d.name == name]
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


@cache
def _declarations(module: str, path: Path, base_config: type[MethodConfig]) -> dict[str, Declaration]:
    """Class name -> declaration, for every class in a method file that carries a `Config` or is registered."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    # A module of its own, so that pydantic resolves postponed annotations against this namespace.
    namespace: dict[str, Any] = {"__name__": f"{module}.__declared__"}
    holder = type(sys)(namespace["__name__"])
    holder.__dict__.update(namespace)
    sys.modules[holder.__name__] = holder
    found: dict[str, Declaration] = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            _import_declared(node, module, holder, found, base_config)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in CONFIG_MODULES:
                    _execute(node, path, holder)
        elif isinstance(node, ast.ClassDef):
            found[node.name] = _declare(node, module, path, holder, found, base_config)
    return found


def _import_declared(
    node: ast.ImportFrom,
    module: str,
    holder: Any,
    found: dict[str, Declaration],
    base_config: type[MethodConfig],
) -> None:
    source = node.module or ""
    if source in CONFIG_MODULES:
        _execute(node, Path(module), holder)
    elif (
        source.rpartition(".")[0] == module.rpartition(".")[0]
    ):  # a parent method, or a helper of the same folder
        package, _, stem = source.rpartition(".")
        path = Path(__file__).parents[1].joinpath(*package.split(".")[1:], f"{stem}.py")
        parents = _declarations(source, path, base_config)
        for alias in node.names:
            if alias.name in parents:
                found[alias.asname or alias.name] = parents[alias.name]
                setattr(holder, alias.asname or alias.name, _Parent(parents[alias.name].config))


@dataclass
class _Parent:
    """Stands for an imported method class, so that `class Config(Parent.Config)` resolves."""

    Config: type[MethodConfig]


def _declare(
    node: ast.ClassDef,
    module: str,
    path: Path,
    holder: Any,
    found: dict[str, Declaration],
    base_config: type[MethodConfig],
) -> Declaration:
    parents = [found[base.id] for base in node.bases if isinstance(base, ast.Name) and base.id in found]
    config = parents[0].config if parents else base_config
    traits: dict[str, frozenset[str]] = {
        "provides": parents[0].provides if parents else frozenset(),
        "requires": parents[0].requires if parents else frozenset(),
    }
    for item in node.body:
        if isinstance(item, ast.ClassDef) and item.name == "Config":
            _execute(item, path, holder)
            config = holder.__dict__.pop("Config")
        target = _assigned(item)
        if target in traits:
            traits[target] = frozenset(_literal_set(item.value))  # type: ignore[attr-defined]
    setattr(holder, node.name, _Parent(config))
    registered = any(isinstance(d, ast.Attribute) and d.attr == "register" for d in node.decorator_list)
    name = path.stem if registered else ""
    return Declaration(name, node.name, ast.get_docstring(node) or "", config, path=path, **traits)


def _assigned(item: ast.stmt) -> str:
    if isinstance(item, ast.Assign) and len(item.targets) == 1 and isinstance(item.targets[0], ast.Name):
        return item.targets[0].id
    if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and item.value is not None:
        return item.target.id
    return ""


def _literal_set(value: ast.expr) -> set[str]:
    """`{"a"}`, `set()` or `frozenset({"a"})`; anything cleverer belongs in the base class."""
    if isinstance(value, ast.Call):
        return _literal_set(value.args[0]) if value.args else set()
    return set(ast.literal_eval(value))


def _execute(node: ast.stmt, path: Path, holder: Any) -> None:
    postponed = ast.parse("from __future__ import annotations").body
    exec(compile(ast.Module([*postponed, node], []), str(path), "exec"), holder.__dict__)
