"""Which of lrft's files a recipe runs: two trainings with equal digests had the same code. Nothing is imported."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import lrft
from lrft.recipe.fields import ROOT, Slot
from lrft.recipe.schema import Recipe
from lrft.registry.axes import OBJECTIVES, SIGNALS
from lrft.registry.config import MethodConfig, Section
from lrft.registry.registry import Registry

TRAINING = ("lrft.api.training.train",)
PACKAGE = Path(lrft.__file__).parent
# Methods that other methods ask for by name, in a string: what to measure first, and with which objective.
NAMED = (SIGNALS, OBJECTIVES)


def code_digest(recipe: Recipe, entries: tuple[str, ...] = TRAINING, package: Path = PACKAGE) -> str:
    """sha256 (hex) over the source of every module that `entries` and the recipe's methods import.

    A change of a method that the recipe does not choose leaves it; so does a change of a command.

    Args:
        entries: modules that the work begins in.
        package: folder of the lrft package; another one than that imported must have the same methods.
    """
    chosen = sorted({registry.declared(name).path for registry, name in _chosen(ROOT, recipe)})
    begin = (*entries, *(_module(path) for path in chosen))
    return _digest(modules(begin, package), package)


@cache
def modules(entries: tuple[str, ...], package: Path = PACKAGE) -> tuple[str, ...]:
    """Every module of lrft that `entries` import, directly or through others, sorted; folders' `__init__` too."""
    waiting, found = list(entries), set()
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += _imports(module, package)
    return tuple(sorted(found))


@cache
def _digest(names: tuple[str, ...], package: Path) -> str:
    text = "".join(f"{name} {_source_digest(name, package)}\n" for name in names)
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _source_digest(module: str, package: Path) -> str:
    return hashlib.sha256(_file(module, package).read_bytes()).hexdigest()


def _chosen(slot: Slot, value: object) -> Iterator[tuple[Registry, str]]:
    """(registry, name) of every method that the recipe chooses, those in the settings of methods too."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            below = slot.below(index, value)
            if below is not None:
                yield from _chosen(below, item)
    if isinstance(value, MethodConfig) and slot.registry is not None:
        yield slot.registry, value.method
    if isinstance(value, Section):
        for name, field in type(value).model_fields.items():
            yield from _chosen(Slot.of(field.annotation, tuple(field.metadata), field), getattr(value, name))


@cache
def _imports(module: str, package: Path) -> tuple[str, ...]:
    """Modules of lrft that running `module` brings in: its folders, what it imports, what its strings name."""
    folders = (module.rpartition(".")[0],) if "." in module else ()
    return (*folders, *dict.fromkeys(_imported(module, package)))


def _imported(module: str, package: Path) -> Iterator[str]:
    tree = ast.parse(_file(module, package).read_text(encoding="utf-8"))
    for node in _running(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if _is_ours(alias.name))
        elif isinstance(node, ast.ImportFrom) and _is_ours(node.module or ""):
            yield node.module or ""
            inside = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name for name in inside if _exists(name, package))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _is_method(module):
            yield from _named(node.value)


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below, less what stands under `if TYPE_CHECKING`, which never runs."""
    yield node
    for child in ast.iter_child_nodes(node):
        if (
            isinstance(child, ast.If)
            and isinstance(child.test, ast.Name)
            and child.test.id == "TYPE_CHECKING"
        ):
            continue
        yield from _running(child)


def _named(text: str) -> Iterator[str]:
    """The module of a method that a string means: `grad`, or `grad@label`."""
    for registry in NAMED:
        if (name := text.partition("@")[0]) in _names(registry):
            yield _module(registry.declared(name).path)


@cache
def _names(registry: Registry) -> frozenset[str]:
    return frozenset(registry.names())


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == "lrft"


def _is_method(module: str) -> bool:
    return module.startswith("lrft.methods.")


def _module(path: Path) -> str:
    return ".".join(("lrft", *path.relative_to(PACKAGE).with_suffix("").parts))


def _exists(module: str, package: Path) -> bool:
    return _file(module, package).is_file()


def _file(module: str, package: Path) -> Path:
    """The source of a module; of a folder, its `__init__`."""
    inside = package.joinpath(*module.split(".")[1:])
    return inside / "__init__.py" if inside.is_dir() else inside.with_suffix(".py")
