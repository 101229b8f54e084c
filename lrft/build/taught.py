"""The objective of a recipe, with its teacher loaded and frozen where it has one."""

from __future__ import annotations

from dataclasses import replace

import torch

from lrft.build.adapt import adapt
from lrft.build.adaptation import Adaptation
from lrft.build.identify import identify
from lrft.build.settle import bare
from lrft.build.teacher import Teacher, base_moves, check_teacher, find_teacher, told
from lrft.build.text import Text
from lrft.core.objective import Objective
from lrft.data.replies import reply_tokens
from lrft.model.backend import settle_attention
from lrft.model.causal_lm import CausalLM
from lrft.model.hf import head_of
from lrft.model.sharing import share_tensors
from lrft.model.trained import load_trained_tensors
from lrft.recipe.schema import Recipe
from lrft.registry.axes import OBJECTIVES
from lrft.registry.config import MethodConfig
from lrft.registry.errors import UsageError
from lrft.registry.json import Json
from lrft.training.chosen import open_chosen
from lrft.training.folder import RUN, RunFolder
from lrft.training.opened import ADAPTER, OpenCheckpoint
from lrft.training.relied import check_relied, plan_of
from lrft.training.trained_on import changed_parts, read_before


def objective_of(
    recipe: Recipe, text: Text, student: Adaptation, trusted: bool
) -> tuple[Objective, dict[str, Json] | None]:
    """`make_objective` of the recipe's own, for the model that trains."""
    return make_objective(recipe.objective, recipe, text, student, student.model.device, trusted)


def make_objective(
    config: MethodConfig,
    recipe: Recipe,
    text: Text,
    student: Adaptation | None,
    device: torch.device,
    trusted: bool,
) -> tuple[Objective, dict[str, Json] | None]:
    """The objective with its teacher on the device, where it has one, and the record of that.

    Args:
        student: the model that trains, whose frozen tensors the teacher uses where it has the same; None where they are
            about to change.
    """
    objective: Objective = OBJECTIVES.get(config.method)(config)
    if "replies" in objective.provides:
        assert text.rows is not None, "an objective is made for rows"
        objective.replies = reply_tokens(text.renderer, text.rows[0])
    if objective.teacher_name is None:
        return objective, None
    teacher = find_teacher(recipe, objective.teacher_name)
    check_teacher(teacher, recipe, text, trusted)
    apart = bool(recipe.train.packing) if student is None else student.packing or student.joined
    objective.teacher, record = load_teacher(teacher, device, apart, trusted)
    if student is not None:
        _check_width(teacher, objective.teacher, student.model)
        if not base_moves(recipe):
            share_tensors(objective.teacher.hf, student.model.hf)
    return objective, record


def load_teacher(
    teacher: Teacher, device: torch.device, apart: bool, trusted: bool
) -> tuple[CausalLM, dict[str, Json]]:
    """The model, frozen and in evaluation mode, and what tells whether it is the same another time.

    Args:
        apart: rows hold several documents, which must not see each other.

    Raises:
        RecipeError: it cannot be loaded, or is not what it was when it was trained.
    """
    with told(teacher.name):
        model, record = (_bare_model if teacher.run is None else _trained_model)(teacher, device, trusted)
        if model.features:
            raise UsageError(
                f"goes by {', '.join(model.features)} of a row, which is not given to it; merge it, or name another"
            )
        with bare(model):
            settle_attention(model, teacher.recipe.model, device, apart)
    model.requires_grad_(False)
    return model.eval(), record


def _bare_model(teacher: Teacher, device: torch.device, trusted: bool) -> tuple[CausalLM, dict[str, Json]]:
    found = adapt(teacher.recipe, device=device, trust_remote_code=trusted, trains=False, sums=True)
    model = found.model
    model.hf.to(device)
    return model, {"kind": "model", "base": _sum_of(model)}


def _trained_model(teacher: Teacher, device: torch.device, trusted: bool) -> tuple[CausalLM, dict[str, Json]]:
    run, theirs = teacher.run, teacher.recipe
    assert run is not None
    with open_chosen(run) as saved:
        check_relied(saved, theirs, run.read(RUN))
        tensors = saved.tensors()
        alone = theirs.model_copy(update={"train": theirs.train.model_copy(update={"shard_base": False})})
        found = adapt(
            alone,
            device=device,
            trust_remote_code=trusted,
            saved=tensors,
            planned=plan_of(saved, run),
            trains=False,
            sums=True,
        )
        load_trained_tensors(found.model, tensors)
        _check_same(run, saved, theirs, found.model)
        trained: Json = saved.manifest["files"][ADAPTER]["sha256"]
    found.model.hf.to(device)
    return found.model, {"kind": "run", "base": _sum_of(found.model), "adapter": trained}


def _check_same(run: RunFolder, saved: OpenCheckpoint, theirs: Recipe, model: CausalLM) -> None:
    now = replace(identify(theirs, None), base=model.weight_sums)
    parts = changed_parts(read_before(run.read(RUN), saved.manifest), now)
    if saved.manifest.get("base", "") != model.fingerprint or parts:
        raise UsageError(
            f"was trained on another base model ({', '.join(parts) or 'its weights'} changed); put back what was there"
        )


def _check_width(teacher: Teacher, theirs: CausalLM, ours: CausalLM) -> None:
    with told(teacher.name):
        widths = [_width(model) for model in (theirs, ours)]
        if widths[0] != widths[1]:
            raise UsageError(
                f"predicts {widths[0]:,} tokens, and model.name {widths[1]:,}, so their distributions are over other "
                "sets; name a model with as many"
            )


def _width(model: CausalLM) -> int:
    """How many tokens the head tells apart."""
    head = head_of(model.hf)
    return int(getattr(head, "out_features", 0) or head.weight.shape[0])


def _sum_of(model: CausalLM) -> str:
    return model.fingerprint if model.weight_sums is None else model.weight_sums.whole
