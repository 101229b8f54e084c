"""What a method's source says of it, read without running the file.

Only the body of its `Config` is executed, over literals of the file and a few harmless modules.
"""

from __future__ import annotations

import ast
import sys
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from lrft.registry.config import MethodConfig
from lrft.registry.declared_config import CONFIG_MODULES, config_of, execute, fault
from lrft.registry.declared_roles import Roles, roles_of, with_parts


@dataclass(frozen=True)
class Declaration:
    """What is known of a method before its file is imported.

    Attributes:
        aliases: what others call the method, several names a line -> what to write for it here, lines of a recipe:
            `{"rank_stabilized rs": "adapter: {method: NAME, rslora: true}"}`. The method's own name may be among
            them, where more than its line is needed. A class has its own, and not its parent's.
        better: of a task, its metrics that say how good a model is -> `higher` or `lower`, whichever is better.
        line: where the class stands in its file.
        says: names that the class gives a value or a body, parents of its folder included.
        roles: of the parameters of its file, parents included; None where only running it would tell.
    """

    name: str
    class_name: str
    doc: str
    config: type[MethodConfig]
    provides: frozenset[str]
    requires: frozenset[str]
    path: Path
    aliases: dict[str, str] = field(default_factory=dict)
    better: dict[str, str] = field(default_factory=dict)
    line: int = 1
    says: frozenset[str] = frozenset()
    roles: Roles = None

    @property
    def summary(self) -> str:
        """The docstring's first line."""
        return self.doc.strip().splitlines()[0] if self.doc.strip() else ""


@cache
def declarations(module: str, path: Path, base_config: type[MethodConfig]) -> dict[str, Declaration]:
    """Class name -> declaration, for every class in a method file that carries a `Config` or is registered.

    Raises:
        RecipeError: the file cannot be read so, with its line and what to write.
    """
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise fault(path, error.lineno or 1, f"this is no Python ({error.msg}); mend the line") from None
    # A module of its own, so that pydantic resolves postponed annotations against its names.
    holder = ModuleType(f"{module}.__declared__")
    sys.modules[holder.__name__] = holder
    found: dict[str, Declaration] = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            _import_declared(node, module, holder, found, base_config)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in CONFIG_MODULES:
                    execute(node, path, holder)
        elif name := _assigned(node):
            with suppress(ValueError):  # what has to be run is missed only where a Config uses it
                setattr(holder, name, ast.literal_eval(node.value))  # type: ignore[attr-defined]
        elif isinstance(node, ast.ClassDef):
            found[node.name] = _declare(node, module, path, holder, found, base_config)
    parts = [one.roles for one in found.values() if one.path == path and not one.name]
    for key, one in [(key, one) for key, one in found.items() if one.path == path and one.name]:
        found[key] = replace(one, roles=with_parts(one.roles, parts))
    return found


def _import_declared(
    node: ast.ImportFrom,
    module: str,
    holder: ModuleType,
    found: dict[str, Declaration],
    base_config: type[MethodConfig],
) -> None:
    source = node.module or ""
    if source in CONFIG_MODULES:
        execute(node, Path(module), holder)
    elif (
        source.rpartition(".")[0] == module.rpartition(".")[0]
    ):  # a parent method, or a helper of the same folder
        package, _, stem = source.rpartition(".")
        path = Path(__file__).parents[1].joinpath(*package.split(".")[1:], f"{stem}.py")
        parents = declarations(source, path, base_config)
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
    holder: ModuleType,
    found: dict[str, Declaration],
    base_config: type[MethodConfig],
) -> Declaration:
    parents = [found[base.id] for base in node.bases if isinstance(base, ast.Name) and base.id in found]
    config = parents[0].config if parents else base_config
    traits: dict[str, frozenset[str]] = {
        "provides": parents[0].provides if parents else frozenset(),
        "requires": parents[0].requires if parents else frozenset(),
    }
    aliases: dict[str, str] = {}
    better = parents[0].better if parents else {}
    for item in node.body:
        if isinstance(item, ast.ClassDef) and item.name == "Config":
            config = config_of(item, path, holder, base_config)
        target = _assigned(item)
        if target in traits:
            traits[target] = frozenset(_literal(item, target, path))
        if target == "aliases":
            aliases = _literal(item, target, path)
        if target == "better":
            better = _literal(item, target, path)
    setattr(holder, node.name, _Parent(config))
    registered = any(isinstance(d, ast.Attribute) and d.attr == "register" for d in node.decorator_list)
    name = path.stem if registered else ""
    doc = ast.get_docstring(node) or ""
    says = frozenset[str]().union(*(parent.says for parent in parents), map(_said, node.body)) - {""}
    return Declaration(
        name,
        node.name,
        doc,
        config,
        traits["provides"],
        traits["requires"],
        path,
        aliases,
        better,
        node.lineno,
        says,
        roles_of(node, [parent.roles for parent in parents]),
    )


def _said(item: ast.stmt) -> str:
    """The name that a line of a class gives a value or a body."""
    return item.name if isinstance(item, ast.FunctionDef | ast.ClassDef) else _assigned(item)


def _assigned(item: ast.stmt) -> str:
    if isinstance(item, ast.Assign) and len(item.targets) == 1 and isinstance(item.targets[0], ast.Name):
        return item.targets[0].id
    if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and item.value is not None:
        return item.target.id
    return ""


def _literal(item: ast.stmt, name: str, path: Path) -> Any:
    """The value written: of traits `{"a"}`, `set()` or `frozenset({"a"})`; anything cleverer belongs in the base class.

    Raises:
        RecipeError: it is no literal.
    """
    value = item.value  # type: ignore[attr-defined]
    if isinstance(value, ast.Call):
        value = value.args[0] if value.args else ast.Tuple([])
    try:
        return ast.literal_eval(value)
    except ValueError:
        message = (
            f'{name} is read without running the file; write it as a literal, such as {name} = {{"adapters"}}'
        )
        raise fault(path, item.lineno, message) from None
