"""Combinations of keys of the rows that cannot work though every section is valid; each function looks for one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping

from lrft.registry.axes import AXES, FORMATS
from lrft.registry.declared import Declaration
from lrft.registry.did_you_mean import listed
from lrft.registry.errors import Problem
from lrft.registry.json import Json, to_section
from lrft.registry.section import RecipeView
from lrft.registry.source import READABLE, source_keys

KINDS = {
    "pairs",
    "labels",
    "judged",
    "passages",
}  # traits of formats whose rows no objective learns beside others
SPLITS = ("data.train", "data.eval")
TXT = tuple(suffix for suffix in READABLE if suffix.startswith(".txt"))


def _sources(settings: RecipeView, split: str) -> Iterator[tuple[str, Mapping[str, Json]]]:
    """Key and settings of every source of a split; what is no section yet has its short form spelled out."""
    given = settings[split]
    for key, one in zip(
        source_keys(split, given), given if isinstance(given, list) else [given], strict=True
    ):
        yield key, {"source": one} if isinstance(one, str) else to_section(one)


def _format(settings: RecipeView) -> Declaration | None:
    """What is declared of the format; None where it is still to be guessed."""
    chosen = settings["data.format"]
    name = chosen.get("method") if isinstance(chosen, dict) else chosen
    return FORMATS.declared(name) if isinstance(name, str) and name in FORMATS.names() else None


def _answers_that_nobody_tells_apart(settings: RecipeView) -> Iterator[Problem]:
    form = _format(settings)
    objective = settings["objective.method"]
    if form is None or not isinstance(objective, str):
        return
    if "judged" in form.provides and "judged" not in AXES["objective"].declared(objective).requires:
        message = (
            f"{form.name} gives answers that are not wanted too, which {objective} would learn; choose an objective "
            "that tells them apart, or a format that reads no judgement"
        )
        yield Problem("data.format.method", message)
    if "pairs" in form.provides and "pairs" not in AXES["objective"].declared(objective).requires:
        message = (
            f"{form.name} gives pairs, and {objective} would learn the rejected answers too; choose an objective "
            "that compares them, or a format that reads one answer"
        )
        yield Problem("data.format.method", message)


def _replies_that_nobody_learns(settings: RecipeView) -> Iterator[Problem]:
    form, objective = settings["data.format"], settings.declared("objective")
    declared = _format(settings)
    judged = (
        declared is not None and "judged" in declared.provides
    )  # the query of others is no question to learn
    query = form.get("query") if judged and isinstance(form, dict) else None
    if query is not None and objective is not None and "replies" not in objective.provides:
        registry = AXES["objective"]
        fit = [name for name in registry.names() if "replies" in registry.declared(name).provides]
        message = (
            f"{objective.name} learns no replies to it; write objective: {' or '.join(fit)}, or remove it"
        )
        yield Problem("data.format.query", message)


def own_formats(settings: RecipeView) -> dict[str, Declaration]:
    """Key of every format that a source says for itself -> what is declared of it."""
    found = {}
    for split in SPLITS:
        if not isinstance(settings[split], list):
            continue
        for at, given in _sources(settings, split):
            chosen = given.get("format")
            name = chosen.get("method") if isinstance(chosen, dict) else chosen
            if isinstance(name, str) and name in FORMATS.names():
                found[f"{at}.format"] = FORMATS.declared(name)
    return found


def _rows_of_two_kinds(settings: RecipeView) -> Iterator[Problem]:
    """Answers, pairs and labels beside one another, of which an objective learns one kind."""
    form = _format(settings)
    known = ({} if form is None else {"data.format": form}) | own_formats(settings)
    for first, key in zip(list(known)[:1] * len(known), list(known)[1:], strict=False):
        one, other = known[first], known[key]
        if one.provides & KINDS != other.provides & KINDS:
            beside = f"{first} {one.name} gives {_rows(one)}"
            message = f"{other.name} gives {_rows(other)}, and {beside}; write formats of one kind"
            yield Problem(key, message)


def _rows(form: Declaration) -> str:
    return next(iter(form.provides & KINDS), "answers")


def _held_out_twice(settings: RecipeView) -> Iterator[Problem]:
    if settings["data.split"] is not None and settings["data.eval"] is not None:
        message = (
            "takes held-out rows from data.train, and data.eval names some already; remove one of the two"
        )
        yield Problem("data.split", message)


def _scores_without_rows(settings: RecipeView) -> Iterator[Problem]:
    if settings["train.eval_every"] is None:
        return
    if settings["data.eval"] is None and settings["data.split"] is None:
        message = "there are no held-out rows to score; write data.eval or data.split, or remove this key"
        yield Problem("train.eval_every", message)


def _rows_left_out(settings: RecipeView) -> Iterator[Problem]:
    if (
        settings["data.drop_overlap"] is True
        and settings["data.eval"] is None
        and settings["data.split"] is None
    ):
        message = (
            "there are no held-out rows to compare with; write data.eval or data.split, or remove this key"
        )
        yield Problem("data.drop_overlap", message)
    compares = settings["data.dedup"] == "near" or settings["data.drop_overlap"] is True
    if settings["data.near_share"] != 0.8 and not compares:
        message = (
            "nothing compares rows; write data.dedup: near or data.drop_overlap: true, or remove this key"
        )
        yield Problem("data.near_share", message)


def _keys_of_another_kind(settings: RecipeView) -> Iterator[Problem]:
    """Keys of hub data sets at local sources, and of text files at others."""
    for split in SPLITS:
        for at, given in _sources(settings, split):
            source = given.get("source")
            if not isinstance(source, str):
                continue
            if given.get("row") == "line" and source.endswith(READABLE) and not source.endswith(TXT):
                message = f"is about .txt files, and {os.path.basename(source)} is none; remove it"
                yield Problem(f"{at}.row", message)
            for key in ("name", "revision", "stream", "split") if os.path.isabs(source) else ():
                if given.get(key) is not None and (key != "split" or not os.path.isdir(source)):
                    message = (
                        f"belongs to hub data sets, but {source} is local; remove it, or write {split}: PATH"
                    )
                    yield Problem(f"{at}.{key}", message)


def _shares(settings: RecipeView) -> Iterator[Problem]:
    sources = list(_sources(settings, "data.train"))
    weighed = [key for key, given in sources if given.get("weight") is not None]
    for key, given in sources:
        if weighed and given.get("weight") is None:
            message = f"is missing, and {weighed[0]}.weight is given; weigh all of the sources, or none"
            yield Problem(f"{key}.weight", message)
        elif weighed and given.get("repeat") is not None:
            message = "is said by the weights already; remove it, or every weight"
            yield Problem(f"{key}.repeat", message)
    for key, plain in (("temperature", 1.0), ("rows", "together"), ("order", "mixed")):
        if len(sources) < 2 and settings[f"data.mix.{key}"] != plain:
            message = "is about several sources of data.train, and there is one; write a list of sources, or remove it"
            yield Problem(f"data.mix.{key}", message)


def _tasks_in_turn(settings: RecipeView) -> Iterator[Problem]:
    """Every task is learnt, as long as it was planned, and scored by itself."""
    given, held = settings["data.train"], settings["data.eval"]
    if settings["data.mix.order"] != "in_turn" or not isinstance(given, list):
        return
    scored = len(held) if isinstance(held, list) else int(held is not None)
    if settings["data.split"] is None and scored != len(given):
        message = (
            f"has {scored} sources of held-out rows, and data.mix.order: in_turn scores each of {len(given)} tasks by "
            "its own; write as many, in the order of data.train, or data.split"
        )
        yield Problem("data.eval", message)
    for key in ("train.stop_below", "train.patience"):
        if settings[key] is not None:
            yield Problem(key, "could end a run before its last task, data.mix.order: in_turn; remove it")
    if settings["train.extended"]:
        message = "cannot be: the tasks of data.mix.order: in_turn were laid out over the run as it was planned; train"
        yield Problem("train.extended", f"{message} anew for longer")


def _windows(settings: RecipeView) -> Iterator[Problem]:
    stride, length = settings["data.stride"], settings["train.max_length"]
    if settings["data.too_long"] != "windows":
        if stride is not None:
            yield Problem("data.stride", "is of windows alone; write data.too_long: windows, or remove it")
        return
    form = _format(settings)
    if form is not None and "documents" not in form.provides:
        message = (
            f"a row of {form.name} has a prompt, which its windows would lose; write drop or truncate_left, or "
            "a format whose rows are whole texts"
        )
        yield Problem("data.too_long", message)
    if isinstance(stride, int) and isinstance(length, int) and stride >= length:
        message = f"windows of train.max_length {length} would not overlap; write at most {length - 1}"
        yield Problem("data.stride", message)


def _features_that_nobody_reads(settings: RecipeView) -> Iterator[Problem]:
    columns = settings["data.features"]
    if not isinstance(columns, list) or not columns:
        return
    adapter = settings.declared("adapter")
    if adapter is None or "features" not in adapter.provides:
        name = "no adapter" if adapter is None else f"adapter {adapter.name}"
        others = listed(settings.that_provide("adapter", "features"), "or")
        message = f"{name} goes by no feature of a row; remove it, or choose adapter {others}"
        yield Problem("data.features", message)
    if twice := sorted({str(column) for column in columns if columns.count(column) > 1}):
        yield Problem("data.features", f"names {', '.join(twice)} twice; remove one")


DATA_CLASHES: tuple[Callable[[RecipeView], Iterator[Problem]], ...] = (
    _answers_that_nobody_tells_apart,
    _replies_that_nobody_learns,
    _rows_of_two_kinds,
    _held_out_twice,
    _scores_without_rows,
    _rows_left_out,
    _keys_of_another_kind,
    _shares,
    _tasks_in_turn,
    _windows,
    _features_that_nobody_reads,
)
