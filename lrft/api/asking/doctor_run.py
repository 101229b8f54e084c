"""Whether everything in a run folder is what was written, by the checks that every command makes."""

from __future__ import annotations

from lrft.api.asking.posterior_folder import FOLDER as POSTERIOR
from lrft.api.asking.what_next import typed
from lrft.export.checks import Check, check
from lrft.files.sums import MANIFEST, folder_fault
from lrft.registry.errors import DamagedFile, LrftError, MissingFile
from lrft.training.checkpoint_folder import fault, open_newest, remains, step_of, steps_in
from lrft.training.folder import METRICS, PLAN, RECIPE, RESULT, RUN, RunFolder
from lrft.training.metrics import damaged_lines
from lrft.training.relied import check_relied, own_recipe
from lrft.training.run_manifest import read_sums
from lrft.training.within_run import BEST, LAST


def check_run(folder: RunFolder) -> tuple[list[Check], list[str], list[str]]:
    """The checks, what they cannot say, and what to type where one fails."""
    path = folder.path
    recipe, records = _recipe(folder), _records(folder)
    steps = sorted(steps_in(folder.checkpoints), key=step_of)
    damaged = {step: problem for step in steps if (problem := fault(step))}
    broken = [f"{step.name}: {problem}" for step, problem in damaged.items()]
    odd = [name for name in remains(folder.checkpoints) if name not in {step.name for step in steps}]
    adapters = [folder.adapter, path / LAST, path / BEST]
    faults = [
        f"{one.name}/: {why}" for one in adapters if folder.has(one.name) and (why := folder_fault(one))
    ]
    checks = [
        check("the recipe can be read", recipe),
        check("the records are what was written", records),
        check(f"{len(steps)} checkpoints are whole", broken),
        check("the newest checkpoint is of this recipe and this run", [] if recipe else _strangers(folder)),
        check("the adapters are what was written", faults),
        *([check("the posterior is what was written", _posterior(folder))] if folder.has(POSTERIOR) else []),
        check(f"every line of {METRICS} can be read", _lines(folder)),
    ]
    told = [f"checkpoints/{name} is no checkpoint, and is left alone" for name in odd]
    if read_sums_or_none(folder) is None and not records:
        told.append(f"there is no {MANIFEST}, so the records are believed")
    then = _next(folder, bool(recipe), bool(records or faults), len(broken) < len(steps))
    if len(broken) < len(steps):  # the others do without it
        then += [f"rm -r {typed(step)}" for step in damaged]
    return checks, told, then


def read_sums_or_none(folder: RunFolder) -> object:
    """What the manifest says; None without one, or where it is damaged, which a check says."""
    try:
        return read_sums(folder.path)
    except DamagedFile:
        return None


def _recipe(folder: RunFolder) -> list[object]:
    try:
        own_recipe(folder.path)
    except LrftError as error:
        return [error]
    return []


def _records(folder: RunFolder) -> list[object]:
    wrong: list[object] = []
    for name in (RUN, PLAN, RESULT):
        try:
            folder.read_whole(name)
        except MissingFile as error:
            if name != RESULT:
                wrong.append(f"{name} {error.problem}")
        except DamagedFile as error:
            wrong.append(f"{name}: {error.file} {error.problem}")
    return wrong


def _strangers(folder: RunFolder) -> list[object]:
    newest = open_newest(folder.checkpoints, lambda line: None)
    if newest is None:
        return []
    with newest:
        try:
            check_relied(newest, own_recipe(folder.path).recipe, folder.read(RUN))
        except DamagedFile as error:
            return [error]
    return []


def _posterior(folder: RunFolder) -> list[object]:
    problem = folder_fault(folder.path / POSTERIOR)
    return [f"{POSTERIOR}/: {problem}"] if problem else []


def _lines(folder: RunFolder) -> list[object]:
    try:
        wrong, lines = damaged_lines(folder.path / METRICS)
    except DamagedFile as error:
        return [error]
    if not folder.has(RESULT) and wrong[-1:] == [lines]:
        wrong.pop()  # cut off by a kill; going on writes it again
    return [f"line {number} of {METRICS} is damaged" for number in wrong]


def _next(folder: RunFolder, recipe: bool, damaged: bool, has_whole: bool) -> list[str]:
    """What to type; the recipe's own sentence says how it is put back."""
    path = folder.path
    if recipe:
        return []
    if not has_whole and remains(folder.checkpoints):
        return [f"lrft train {typed(path / RECIPE)} --out NEW"]
    return [f"lrft train {typed(path)} --resume"] if damaged else []
