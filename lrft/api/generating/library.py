"""The library that a generator is fitted on: adapters of tasks of one base, and what the base makes of each task."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from lrft.api.combining.parents import Parent, read_parents, run_of
from lrft.build.identify import reads_alike
from lrft.core.generate import Known, Layout
from lrft.model.causal_lm import CausalLM
from lrft.recipe.load import load_recipe
from lrft.recipe.schema import Recipe
from lrft.registry.errors import UsageError
from lrft.registry.json import Json
from lrft.training.checkpoint_folder import step_of, steps_in
from lrft.training.relied import own_recipe

ADAPTER = "adapter_config.json"
ALIKE = 0.5  # cosine of two mean A below which the tasks cannot have begun with the same


@dataclass(frozen=True)
class Member:
    """A task that is named on the command line.

    Attributes:
        folders: what read_parents takes, the oldest first.
        recipe: says base and data of the task.
        began: what decided the factors that its training began with, of a run; else empty.
    """

    name: str
    folders: list[Path]
    recipe: Recipe
    began: str = ""


@dataclass(frozen=True)
class Library:
    """What was read.

    Attributes:
        record: task -> where its samples are from, with their sums.
        told: what a reader has to know of it.
    """

    layout: Layout
    known: list[Known]
    record: dict[str, Json]
    told: list[str]


def member_of(word: str) -> Member:
    """A run with its checkpoints, or `FOLDER=RECIPE`, one adapter of PEFT or a folder of such, and its task's recipe.

    Raises:
        UsageError: it is neither.
    """
    folder, _, recipe = (word, "", "") if run_of(word) is not None else word.partition("=")
    if (run := run_of(folder)) is not None:
        if recipe:
            raise UsageError(f"{word}: a run knows its own recipe; write {folder}")
        steps = sorted(steps_in(run / "checkpoints"), key=step_of)
        if not steps:
            raise UsageError(f"{folder}: has no checkpoint yet; train it first")
        own = own_recipe(run).recipe
        return Member(run.resolve().name, steps, own, _began(own))
    if not recipe:
        raise UsageError(
            f"{folder}: is no run; of an adapter of PEFT write {folder}=RECIPE, with the recipe of its data"
        )
    path = Path(folder)
    found = [path] if (path / ADAPTER).is_file() else _in_order(path)
    if not found:
        raise UsageError(f"{folder}: holds no adapter of PEFT (no {ADAPTER}), nor folders with one")
    return Member(path.resolve().name, found, load_recipe(recipe).recipe)


def check_one_base(members: Sequence[Member]) -> None:
    """Refuse tasks whose recipes are of other models: their rows would be read by other tokens than the base has.

    Raises:
        UsageError: names the first.
    """
    first, *others = [(one.name, one.recipe.model) for one in members]
    for name, model in others:
        if not reads_alike(model, first[1]):
            raise UsageError(
                f"{name}: its recipe is of {model.name}, and that of {first[0]} of {first[1].name}, or of another "
                "revision, tokenizer or add_tokens; a library is of one base"
            )


def read_library(members: Sequence[Member], base: CausalLM) -> tuple[Layout, list[Tensor], Library]:
    """Every sample of every task as a vector; the conditions come after.

    Raises:
        UsageError: two have one name, or adapters differ in sites or ranks, or are dense.
    """
    names = [one.name for one in members]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"two tasks are called {twice}; give folders of different names")
    layout: Layout | None = None
    vectors, record, told = [], dict[str, Json](), list[str]()
    for one in members:
        read = read_parents(one.folders, one.recipe, base)
        layout = layout or layout_of(read[0], str(one.folders[0]))
        vectors.append(
            torch.stack(
                [vector_of(part, layout, str(folder)) for part, folder in zip(read, one.folders, strict=True)]
            )
        )
        record[one.name] = [str(parent.record["sha256"]) for parent in read]
        told += [line for parent in read[:1] for line in parent.told]
    assert layout is not None, "at least one task is named"
    return layout, vectors, Library(layout, [], record, told + _apart(members, vectors, layout))


def layout_of(parent: Parent, name: str) -> Layout:
    """The factors of an adapter, in the order of the model.

    Raises:
        UsageError: it is no pair of factors everywhere.
    """
    if dense := next((site for site, part in parent.parts.items() if part.dense is not None), None):
        raise UsageError(
            f"{name}: its change at {dense} is no product of two factors; a library is of such alone"
        )
    shapes: dict[str, tuple[int, int]] = {}
    for site, part in parent.parts.items():
        out_features, in_features = part.shape
        shapes[f"{site}.A"], shapes[f"{site}.B"] = (part.rank, in_features), (out_features, part.rank)
    return Layout(shapes)


def vector_of(parent: Parent, layout: Layout, name: str) -> Tensor:
    """An adapter in a layout, (size,), its scale in B.

    Raises:
        UsageError: it has other sites or ranks.
    """
    own = layout_of(parent, name)
    if dict(own.shapes) != dict(layout.shapes):
        odd = next(
            (key for key in {**layout.shapes, **own.shapes} if own.shapes.get(key) != layout.shapes.get(key)),
            "",
        )
        raise UsageError(
            f"{name}: has {own.shapes.get(odd, 'nothing')} at {odd}, where the first of the library has "
            f"{layout.shapes.get(odd, 'nothing')}; all need the same sites and ranks"
        )
    factors = {}
    for site, part in parent.parts.items():
        factors[f"{site}.A"], factors[f"{site}.B"] = part.A.float(), part.scale * part.B.float()
    return layout.joined(factors)


def _apart(members: Sequence[Member], vectors: Sequence[Tensor], layout: Layout) -> list[str]:
    """Tasks whose A may be turned against one another: B M^-1 and M A are the same adapter by other numbers."""
    found = []
    for (before, first), (after, second) in pairwise(zip(members, vectors, strict=True)):
        if before.began and after.began:
            if before.began == after.began:
                continue
            why = "their recipes differ in train.seed, init or adapter"
        else:
            cosine = float(
                torch.cosine_similarity(_downs(first[0], layout), _downs(second[0], layout), dim=0)
            )
            if cosine >= ALIKE:
                continue
            why = f"the cosine of their first A is {cosine:.2f}"
        found.append(
            f"{before.name} and {after.name} did not begin with the same factors ({why}), so their numbers do not "
            "compare one by one; train all tasks with one train.seed and one init"
        )
    return found


def _began(recipe: Recipe) -> str:
    plain = recipe.model_dump(mode="json")
    return json.dumps([recipe.train.seed, plain["init"], plain["adapter"]], sort_keys=True)


def _downs(vector: Tensor, layout: Layout) -> Tensor:
    parts: Mapping[str, Tensor] = layout.split(vector)
    return torch.cat([part.flatten() for name, part in parts.items() if name.endswith(".A")])


def _in_order(folder: Path) -> list[Path]:
    """Adapters of PEFT in folders below, by the numbers in their names, as `checkpoint-20` after `checkpoint-3`."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if (path / ADAPTER).is_file()]
    return sorted(found, key=lambda path: (*map(int, re.findall(r"\d+", path.name)), path.name))
