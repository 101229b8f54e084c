"""What planners and inits need measured before they decide, over training rows or rows of their own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain, count, islice
from typing import TYPE_CHECKING

import torch

from lrft.build.steps import first_rows, train_data
from lrft.core.batch import Batch
from lrft.core.stages import Plan, Planner, Signals, Statistic
from lrft.data.encoded import Encoded
from lrft.data.steps import TrainData
from lrft.evaluation.subject import Progress
from lrft.model.along_path import measure_along_path
from lrft.model.calibrate import calibrate
from lrft.model.causal_lm import CausalLM
from lrft.ops.draws import seed_generators
from lrft.recipe.schema import Recipe
from lrft.registry.axes import OBJECTIVES, SIGNALS
from lrft.registry.config import parse_choice
from lrft.registry.errors import RecipeError

if TYPE_CHECKING:
    from lrft.build.text import Text


def measured_signals(
    recipe: Recipe,
    model: CausalLM,
    plan: Plan,
    planners: Sequence[Planner],
    text: Text | None,
    device: torch.device | str,
    progress: Progress,
    trusted: bool = False,
) -> Signals:
    """What the planners need measured, over the first micro-batches of the training rows or of their own sources."""
    found: Signals = defaultdict(dict)
    for planner in planners:
        labels: dict[str, list[str]] = defaultdict(list)
        for need in planner.needs:
            name, _, label = need.partition("@")
            labels[label].append(name)
        for label, names in labels.items():
            assert text is not None, "calibration needs the training rows"
            if recipe.privacy is not None and not label:
                raise RecipeError(
                    f"{planner.name} measures the training rows before the first step, which nobody accounts for; "
                    "choose what measures none",
                    "privacy",
                )
            model.hf.to(device)
            seed_generators(recipe.train.seed)
            part = _calibrated(recipe, model, plan, planner, label, names, text, progress, trusted)
            for site, statistics in part.items():
                found[site].update({f"{n}@{label}" if label else n: t for n, t in statistics.items()})
    return dict(found)


def _calibrated(
    recipe: Recipe,
    model: CausalLM,
    plan: Plan,
    planner: Planner,
    label: str,
    names: list[str],
    text: Text,
    progress: Progress,
    trusted: bool,
) -> Signals:
    from lrft.build.taught import make_objective  # which builds a model of its own

    wanted = planner.config.batches
    rows = text.encoded(planner.sources()[label], f"init.{label}") if label else text.train
    along = [name for name in names if SIGNALS.get(name).path]
    assert not along or along == names, "statistics along a path are measured by themselves"
    single = bool(along) or any(SIGNALS.get(name).per_document for name in names)
    data = _calibration_data(recipe, text, rows, single) if label or single else train_data(recipe, text)
    config = parse_choice(OBJECTIVES, planner.objective) if planner.objective else recipe.objective
    objective, _ = make_objective(config, recipe, text, None, model.device, trusted)
    if single and {"pairs", "replies", "passages"} & (objective.requires | objective.provides):
        message = f"measures single documents, of which {objective.name} has no loss; choose another init"
        raise RecipeError(message, "init.method")
    show = partial(progress, f"calibrating on {label}" if label else "calibrating")

    def make(site: str, name: str) -> Statistic:
        config = plan[site].config
        assert config is not None
        statistic: Statistic = SIGNALS.get(name)(**planner.signal_options(name, config))
        return statistic

    sites = {name: entry.site for name, entry in plan.items() if entry.config is not None}
    batches = islice(_micro_batches(data), wanted)
    if along:
        return measure_along_path(model, sites, batches, make, names, lambda done: show(done, wanted))
    return calibrate(
        model,
        sites,
        batches,
        objective,
        make,
        names,
        lambda done: show(done, wanted),
        planner.warm_up,
    )


def _micro_batches(data: TrainData) -> Iterator[Batch]:
    return chain.from_iterable(data.at(step).micro_batches for step in count())


def _calibration_data(recipe: Recipe, text: Text, rows: Sequence[Encoded], single: bool) -> TrainData:
    """Rows cut as training cuts them, or one document a micro-batch."""
    settings = recipe.train
    pairs = single and any(row.parts for row in rows)
    mixture = first_rows(recipe, text) if rows is text.train and not pairs else None
    if single:
        rows = [document for row in rows for document in row.documents()]
    return TrainData(
        rows,
        batch_size=1 if single else settings.batch_size,
        accumulation=1,
        max_length=settings.max_length,
        packing=settings.packing is not False and not single,
        seed=settings.seed,
        pad_id=text.pad_id,
        mixture=mixture,
    )
