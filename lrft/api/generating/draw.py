"""`lrft generate-adapter draw`: an adapter for a task that nobody trained on, written as any run, and judged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NotRequired, TypedDict

import torch

from lrft.api.combining.folder import write_run
from lrft.api.combining.origin import Origin
from lrft.api.combining.parents import read_parents, run_of
from lrft.api.generating.folder import Opened, read_generator
from lrft.api.generating.judge import TRAINED, Judged, judge, stand_ins
from lrft.api.generating.library import layout_of, vector_of
from lrft.api.generating.reading import read_task
from lrft.api.generating.steps import draws_of
from lrft.core import stop
from lrft.core.adapter import Factors
from lrft.core.notes import say
from lrft.core.params import Site
from lrft.evaluation.progress import EvaluationBar
from lrft.export.pairs import Pair
from lrft.export.write import check_free, whole_folder
from lrft.files.sums import MANIFEST, file_sum
from lrft.files.write import write_in
from lrft.model.causal_lm import CausalLM
from lrft.model.load import load_model
from lrft.model.sites import linear_sites
from lrft.recipe.load import load_recipe
from lrft.recipe.schema import Recipe
from lrft.registry.errors import DamagedFile, UsageError
from lrft.registry.json import Json
from lrft.training.relied import own_recipe
from lrft.training.run_manifest import text_of

RECORD = "generated.json"
CARD = """
Drawn by {generator} with seed {seed}, by `lrft generate-adapter`, which was fitted on adapters of {tasks} other tasks:
no step was trained on this one.

All figures are in `generated.json`.
"""


class Drawn(TypedDict):
    """What a call did, written beside the adapter too.

    Attributes:
        norm: of the whole change, Frobenius.
        told: what a reader has to know.
    """

    out: str
    generator: str
    generator_sha256: str
    seed: int
    rank: int
    sites: int
    norm: float
    told: list[str]
    judged: NotRequired[Judged]


def draw(
    generator: Path | str,
    task: Path | str,
    out: Path | str,
    describe: str | None = None,
    seed: int = 0,
    trained: Path | str | None = None,
    draws: int = 1,
    limit: int | None = None,
    trust_remote_code: bool = False,
) -> Drawn:
    """Draw an adapter for a task; returns the record, written to `out` too.

    What is written is a run folder with a checkpoint of step 0, and at its top the same adapter as PEFT has it.

    Args:
        generator: a folder that `fit` wrote.
        task: a recipe, or a run whose recipe is meant: it says base and data.
        out: a new or an empty folder.
        describe: what the task is, for a generator that goes by texts.
        trained: a run that was trained on the task, to judge by.
        draws: adapters that are judged, of seeds from `seed` on; the first is written.
        limit: held-out rows that are judged on.

    Raises:
        UsageError: the generator is not finished, or of another base.
        WriteError: the disk is full or not writable; nothing is left at `out`.
    """
    out = Path(out)
    check_free(out)
    if trained is None and (draws != 1 or limit is not None):
        raise UsageError("--draws, --limit: are of --judge; add --judge RUN, or leave them out")
    opened = _finished(generator)
    recipe = _recipe(task)
    with stop.listening(f"{out} is as it was; the same command draws again"), EvaluationBar() as show:
        base = load_model(
            recipe.model, trust_remote_code=trust_remote_code, seed=recipe.train.seed, sums=True
        )
        _check_base(opened, base)
        wants = type(opened.generator).wants(opened.generator.config)
        reading = read_task(recipe, wants, describe, "the task", trust_remote_code)
        given = reading.condition(base, show)
        told: list[str] = []
        others = {} if trained is None else _others(opened, trained, recipe, base, seed, told)
        sites = linear_sites(base)
        _check_sites(opened, sites)
        del base
        opened.generator.eval()
        found = [opened.generator.draw(given, draws_of(seed + k, 0)) for k in range(draws)]
        others |= opened.generator.beside(given) if trained is not None else {}
        record = _record(opened, found[0], out, seed, told)
        for line in told:
            say(line)
        with whole_folder(out) as place:
            pairs = {site: Pair(*factors) for site, factors in found[0].items()}
            run = write_run(place, out.name, recipe, pairs, sites, _origin(opened, record), trust_remote_code)
            if trained is not None:
                record["judged"] = judge(run, found, others, limit, show)
            write_in(place / RECORD, text_of(record))
    return record


def _finished(folder: Path | str) -> Opened:
    opened = read_generator(folder)
    if not opened.finished:
        record = opened.record
        raise UsageError(
            f"{folder}: is fitted to step {record['step']} of {record['steps']}; the command that began it goes on"
        )
    return opened


def _recipe(task: Path | str) -> Recipe:
    run = run_of(task)
    found = load_recipe(task).recipe if run is None else own_recipe(run).recipe
    if found.model.head is not None:
        raise UsageError("model.head: scores of whole texts are no adapter of a language model")
    return found


def _check_base(opened: Opened, base: CausalLM) -> None:
    """Refuse another base, by the sum of all its values where both are known.

    Raises:
        UsageError: with what would work.
    """
    own, values = opened.record["base_sha256"], base.weight_sums
    same = own == values.whole if own and values is not None else opened.record["base"] == base.fingerprint
    if not same:
        raise UsageError(
            f"{opened.path}: draws adapters of {opened.record.get('base_name', 'another base')}, and the weights of "
            "this task's model are others; give a recipe of that model"
        )


def _check_sites(opened: Opened, sites: Mapping[str, Site]) -> None:
    """Refuse layers that the base has not, or has in another shape.

    Raises:
        DamagedFile: names the first factor.
    """
    for name, (rows, columns) in opened.layout.shapes.items():
        site, _, factor = name.rpartition(".")
        own = sites.get(site)
        wanted = None if own is None else {"A": own.in_features, "B": own.out_features}.get(factor)
        if wanted != (columns if factor == "A" else rows):
            problem = f"draws {name} of {rows} times {columns}, which no layer of the base takes"
            raise DamagedFile(opened.path, problem, "fit it again")


def _others(
    opened: Opened, trained: Path | str, recipe: Recipe, base: CausalLM, seed: int, told: list[str]
) -> dict[str, dict[str, Factors]]:
    """The trained adapter, the base, and what is made of the library without looking at the task."""
    (parent,) = read_parents([trained], recipe, base)
    layout_of(parent, str(trained))
    own = opened.layout.factors(vector_of(parent, opened.layout, str(trained)))
    seen = {sum_ for sums in opened.record["tasks"].values() for sum_ in sums}
    if parent.record["sha256"] in seen:
        told.append(
            f"{trained} is in the library, so this says how it is remembered and nothing of new tasks"
        )
    return {TRAINED: own, **stand_ins(opened, seed)}


def _record(opened: Opened, factors: dict[str, Factors], out: Path, seed: int, told: list[str]) -> Drawn:
    if not all(one.isfinite().all() for pair in factors.values() for one in pair):
        raise UsageError(f"{opened.path}: drew numbers that are not finite; fit it with a smaller lr")
    return {
        "out": str(out),
        "generator": opened.generator.name,
        "generator_sha256": file_sum(opened.path / MANIFEST)["sha256"],
        "seed": seed,
        "rank": max(A.shape[0] for A, _ in factors.values()),
        "sites": len(factors),
        "norm": float(torch.stack([(B @ A).norm() for A, B in factors.values()]).norm()),
        "told": told,
    }


def _origin(opened: Opened, record: Drawn) -> Origin:
    about: dict[str, Json] = {
        "generator": dict(opened.record["generator"]),
        "generator_sha256": record["generator_sha256"],
        "seed": record["seed"],
        "tasks": list(opened.record["tasks"]),
    }
    tasks = len(opened.record["tasks"])
    return Origin(
        "generated", about, CARD.format(generator=record["generator"], seed=record["seed"], tasks=tasks)
    )
