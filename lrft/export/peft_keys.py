"""Which keys the installed PEFT knows of an adapter_config.json, read from its source: it is never imported here."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
from pathlib import Path


def known_keys(peft_type: str) -> tuple[str, set[str]] | None:
    """PEFT's version and the keys of the configuration with this `peft_type`; None where PEFT is not installed.

    Raises:
        KeyError: it has no such type.
    """
    spec = importlib.util.find_spec("peft")
    if spec is None or spec.origin is None:
        return None
    root = Path(spec.origin).parent
    classes = {
        node.name: node
        for file in (root / "config.py", *sorted(root.glob("tuners/*/config.py")))
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }
    own = next((name for name, node in classes.items() if _type_of(node) == peft_type), None)
    if own is None:
        raise KeyError(peft_type)
    return importlib.metadata.version("peft"), _fields(classes, own)


def _type_of(node: ast.ClassDef) -> str | None:
    """What the class sets `self.peft_type` to."""
    for part in ast.walk(node):
        if isinstance(part, ast.Assign) and ast.unparse(part.targets[0]) == "self.peft_type":
            return ast.unparse(part.value).rpartition(".")[2]
    return None


def _fields(classes: dict[str, ast.ClassDef], name: str) -> set[str]:
    if name not in classes:
        return set()
    node = classes[name]
    own = {
        part.target.id
        for part in node.body
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)
    }
    return own.union(*(_fields(classes, ast.unparse(base)) for base in node.bases))
