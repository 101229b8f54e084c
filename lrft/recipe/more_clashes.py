"""More combinations of keys that cannot work though every section is valid."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lrft.registry.errors import Problem
from lrft.registry.section import RecipeView

# Of adapters for which an init chooses what trains: what was trained before has its own choice.
CHOSEN = {
    "placed",
    "chosen_rows",
    "chosen_channels",
    "chosen_entries",
    "chosen_rotation",
    "feature_axes",
    "smoothed",
}


def _start_that_is_given(settings: RecipeView) -> Iterator[Problem]:
    if settings["model.adapter"] is None:
        return
    adapter, init = settings.declared("adapter"), settings.declared("init")
    if adapter is None:
        message = (
            "there is no adapter that could begin with it; choose one, or merge it and name the merged model"
        )
        yield Problem("model.adapter", message)
    elif init is not None and init.name != "default" and not init.requires & adapter.provides & CHOSEN:
        yield Problem("init.method", "model.adapter says what the adapter begins with; leave init out")


def _stack_that_is_given(settings: RecipeView) -> Iterator[Problem]:
    """Adapters beneath one that trains are kept beside its base, as what restarts move there is."""
    if not settings["model.adapters"]:
        return
    adapter, start = settings.declared("adapter"), settings.declared("init")
    if adapter is None or "mergeable" not in adapter.provides or "own_weights" in adapter.provides:
        what = "there is no adapter" if adapter is None else f"{adapter.name} is no change of a weight"
        yield Problem("model.adapters", f"{what} that could train on top of them; choose another adapter")
    elif start is not None and start.name != "default":
        needed = start.requires & adapter.provides & CHOSEN
        remedy = f", and adapter: {adapter.name} needs it; choose another" if needed else "; leave init out"
        message = f"{start.name} looks at the weights without them{remedy}"
        yield Problem("init.method", f"model.adapters are added to the base, and {message}")
    beside = {
        "model.head": settings["model.head"] is not None,
        "model.add_tokens": settings["model.add_tokens"] is not None,
        "prune": settings["prune"] is not None,
        "train.shard_base: true": settings["train.shard_base"] is True,
    }
    yield from (
        Problem(
            "model.adapters",
            f"cannot be added to the base with {other}; merge them, or remove one of the two",
        )
        for other, there in beside.items()
        if there
    )


def _extended_past_a_plan(settings: RecipeView) -> Iterator[Problem]:
    """What follows the whole run has done its part by the planned end; a loss that ended it would at once again."""
    if not settings["train.extended"]:
        return
    allocation = settings.declared("allocate")
    timed = [] if settings["restart"] is None else [f"restart {settings['restart.method']}"]
    timed += [f"allocate {allocation.name}"] if allocation and "one_stage" in allocation.requires else []
    pruner = settings.declared("prune")
    timed += [f"prune {pruner.name}"] if pruner and "cut_units" not in pruner.provides else []
    timed += [] if settings["train.stop_below"] is None else ["train.stop_below"]
    if timed:
        message = (
            f"cannot be: {' and '.join(timed)} followed the run as it was planned; train anew for longer"
        )
        yield Problem("train.extended", message)


def _noise_in_compiled_code(settings: RecipeView) -> Iterator[Problem]:
    if settings["train.neftune"] is not None and settings["model.compile"] is True:
        yield Problem(
            "train.neftune", "its draws cannot be compiled; write model.compile: false, or remove it"
        )


def _new_tokens(settings: RecipeView) -> Iterator[Problem]:
    """Rows of new tokens train beside an adapter, on a frozen vocabulary that nothing else changes or compiles."""
    key, asked = "model.add_tokens", settings["model.add_tokens"]
    if asked is None:
        if settings["model.resize"] is not None:
            yield Problem("model.resize", f"pads the rows of new tokens, and {key} names none; remove it")
        return
    texts = _texts(settings)
    if not texts or "" in texts:
        yield Problem(key, "holds no text or an empty one; write texts such as ['<|call|>'], or remove it")
    elif twice := sorted({text for text in texts if texts.count(text) > 1}):
        yield Problem(key, f"names {twice[0]!r} twice; write it once")
    adapter = settings.declared("adapter")
    beside = {
        "adapter: null": adapter is None,
        f"adapter: {adapter and adapter.name}": adapter is not None and "own_weights" in adapter.provides,
        "model.adapter": settings["model.adapter"] is not None,
        "model.compile: true": settings["model.compile"] is True,
        "select": settings["select"] is not None,
        "restart": settings["restart"] is not None,
        "prune": settings["prune"] is not None,
        "train.shard_base: true": settings["train.shard_base"] is True,
    }
    yield from (
        Problem(key, f"new rows do not train with {other}; remove one of the two")
        for other, there in beside.items()
        if there
    )


def _sources_that_alternate(settings: RecipeView) -> Iterator[Problem]:
    """Every source has as many steps as the others, whatever is said of its rows' share."""
    given = settings["data.train"]
    if settings["data.mix.order"] != "alternating" or not isinstance(given, list):
        return
    why = "says how many rows of a source an epoch has, and with data.mix.order: alternating all have as many steps"
    for place, source in enumerate(given):
        for key in ("weight", "repeat", "cap"):
            if isinstance(source, dict) and source.get(key) is not None:
                yield Problem(f"data.train.{place}.{key}", f"{why}; remove it")
    for key, plain in (("temperature", 1.0), ("rows", "together")):
        if settings[f"data.mix.{key}"] != plain:
            yield Problem(f"data.mix.{key}", f"{why}; remove it")
    objective = settings.declared("objective")
    if (
        objective is not None
        and "draws" in objective.provides
        and settings["objective.updates"] not in (None, 1)
    ):
        message = (
            "has several steps learn from the same rows, and the next step is of another source; write 1"
        )
        yield Problem("objective.updates", message)


def _texts(settings: RecipeView) -> list[str]:
    asked = settings["model.add_tokens"]
    groups = asked.values() if isinstance(asked, dict) else [asked]
    return [str(text) for group in groups if isinstance(group, list) for text in group]


MORE: tuple[Callable[[RecipeView], Iterator[Problem]], ...] = (
    _start_that_is_given,
    _stack_that_is_given,
    _extended_past_a_plan,
    _noise_in_compiled_code,
    _new_tokens,
    _sources_that_alternate,
)
