"""The model as it was before training, for tasks that compare it with what training made of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lrft.core.adapted import adapted, adapters_off
from lrft.core.units import CUT
from lrft.evaluation.subject import Subject
from lrft.model.trained import base_parameters
from lrft.registry.errors import UsageError


@contextmanager
def as_before(subject: Subject, task: str) -> Iterator[None]:
    """The base as it is stored, without its adapters; where they are off already, the same model.

    Raises:
        UsageError: something else trained, so that the base is not here any more.
    """
    model = subject.model
    if any(base_parameters(model)) or (model.pruned is not None and model.pruned.state == CUT):
        raise UsageError(
            f"--task {task}: compares with the model before training, and base weights trained or were cut here; "
            "score both with --baseline and the task that it repeats"
        )
    if any("own_weights" in site.adapter.provides for _, site in adapted(model.hf)):
        raise UsageError(
            f"--task {task}: the adapter is the model's weights itself; there is no model before it"
        )
    with adapters_off(model):
        yield
