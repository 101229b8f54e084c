"""What a path in a recipe means: relative to the file it is written in, then to the working directory."""

from __future__ import annotations

import os
import re
from dataclasses import replace

from lrft.core.errors import Problem
from lrft.recipe.tree import Keys, Node, dotted, shown

SOURCES: tuple[Keys, ...] = (("data", "train", "source"), ("data", "eval", "source"))
MODEL: Keys = ("model", "name")
DATA_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".gz", ".zst", ".bz2", ".xz", ".zip")
VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})", re.ASCII)
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


def located(root: Node) -> tuple[Node, list[Problem]]:
    """The tree with the paths of data sources and of the model made absolute, and the paths that exist nowhere.

    What is not a path (`openai/gsm8k`, `pkg:...`) stays as written.
    """
    problems: list[Problem] = []
    for keys in (*SOURCES, MODEL):
        node = root.get(*keys)
        if node is None or not isinstance(node.value, str) or not node.value:
            continue
        try:
            root = root.with_value(keys, replace(node, value=_located(node, is_model=keys == MODEL)))
        except _Nowhere as error:
            problems.append(node.place.problem(dotted(keys), str(error)))
    return root, problems


class _Nowhere(Exception):
    pass


def _located(node: Node, is_model: bool) -> str:
    text = _expanded(node.value)
    if is_model and text.startswith("pkg:"):
        return text
    here = os.path.abspath(text)
    candidates = [here]
    if node.place.folder is not None and not os.path.isabs(text):
        candidates.insert(0, os.path.abspath(node.place.folder / text))
    for candidate in dict.fromkeys(candidates):
        if os.path.isdir(candidate) if is_model and not text.endswith(".gguf") else os.path.exists(candidate):
            return candidate
    looks_like_a_path = text.startswith((".", "/", "~")) or text != node.value or text.endswith(_suffixes(is_model))
    if not looks_like_a_path and HUB_ID.fullmatch(text):
        return text
    kind = "folder or .gguf file" if is_model else "file or folder"
    where = " or ".join(_brief(path) for path in dict.fromkeys(candidates))
    if looks_like_a_path:
        raise _Nowhere(f"{shown(node.value)} does not exist; looked for {where}; give an existing {kind} or a hub id")
    raise _Nowhere(f"{shown(node.value)} is neither an existing {kind} (looked for {where}) nor a hub id (owner/name)")


def _suffixes(is_model: bool) -> tuple[str, ...]:
    return (".gguf", ".safetensors") if is_model else DATA_SUFFIXES


def _expanded(text: str) -> str:
    """`~` and `$VARIABLES` replaced."""
    for match in VARIABLE.finditer(text):
        name = match[1] or match[2]
        if name not in os.environ:
            raise _Nowhere(f"{shown(text)} uses ${name}, which is not set; export {name}=FOLDER, or write the path")
    text = VARIABLE.sub(lambda match: os.environ[match[1] or match[2]], text)
    return os.path.expanduser(text) if text.startswith("~") else text


def _brief(path: str) -> str:
    return path if path.isprintable() and len(path) <= 200 else shown(path)
