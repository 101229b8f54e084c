"""Whether what a run trained on is still there: refused where numbers would change, and told where they may."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lrft import __version__
from lrft.build.job import Job
from lrft.build.native import kernels_here
from lrft.core.notes import say
from lrft.data.pack import ORDER
from lrft.registry.errors import CheckpointError, UsageError
from lrft.training.changes import describe
from lrft.training.folder import RUN, RunFolder
from lrft.training.opened import OpenCheckpoint
from lrft.training.trained_on import Before, TrainedOn, changed_parts, read_before
from lrft.training.versions import differing, package_versions, versions_of_numbers

# What other versions of these write differently though it means the same; the tokens of the rows are compared anyway.
WRITTEN_BY = {"tokenizer": ("lrft", "transformers", "tokenizers"), "template": ("lrft", "transformers")}


def check_same_text(folder: RunFolder, saved: OpenCheckpoint | None, now: TrainedOn) -> None:
    """Refuse, before weights are read, what no recipe shows: other rows, another tokenizer, template or config.json.

    Args:
        saved: the checkpoint that is gone on from; None before the first one.

    Raises:
        UsageError: names what changed, from what to what.
    """
    before = _before(folder, saved)
    if not before.known:
        say(
            f"{folder.path}: was begun by a version that kept no sums of what it trained on, so not every change of "
            "the tokenizer, the chat template, config.json and the weights can be seen; they are kept from here on"
        )
    parts = _less_rewritten(changed_parts(before, now), before, now)
    if parts:
        raise _not_resumed(folder, describe(parts, before, now))


def check_same_start(job: Job, saved: OpenCheckpoint | None) -> None:
    """Refuse what shows once the model is there: other base weights, another start, rows laid out otherwise.

    Raises:
        UsageError: names what differs.
    """
    before = _before(job.folder, saved)
    assert job.trained_on is not None, "a training knows what it trains on"
    if "base" in changed_parts(before, job.trained_on):
        raise _not_resumed(job.folder, describe(["base"], before, job.trained_on))
    recorded = job.folder.read(RUN)
    now = {
        "base_fingerprint": job.identity.base,
        "packing": job.adaptation.packing,
        "packing_order": ORDER,
    }
    asked = job.run.recipe.train.packing  # older runs, which recorded nothing, packed unless told otherwise
    recorded = {"packing": asked is not False, "packing_order": "as they come", **recorded}
    if not job.adaptation.packing:
        recorded["packing_order"] = ORDER  # no row depends on it
    if job.adaptation.origin is not None:  # read anew, as no step was saved yet
        now["adapter"] = job.adaptation.origin
    if "teacher" in job.began:
        now["teacher"] = job.began["teacher"]
    said = {
        "teacher": "the teacher that the objective names",
        "adapter": "the adapter of model.adapter",
        "packing": "whether rows are packed (train.packing)",
        "packing_order": "the order that lrft packs rows in (another version)",
        "base_fingerprint": "the weights of model.name (another base model)",
    }
    for key, value in now.items():
        if recorded.get(key) != value:
            raise _not_resumed(job.folder, said[key])


def tell_versions(folder: RunFolder, saved: OpenCheckpoint, device: torch.device) -> None:
    """Say under which other versions, or on which other processor, the checkpoint was made."""
    found = differing(
        _before(folder, saved).versions, versions_of_numbers(device, kernels_here(device) is not None)
    )
    if found:
        say(
            f"{saved.path.name} was made under other versions ({', '.join(found)}): the steps from here on are not "
            "bit for bit those that it would have taken"
        )


def check_same_use(folder: RunFolder, saved: OpenCheckpoint, now: TrainedOn) -> None:
    """Refuse to score, merge or export a checkpoint with another config.json, tokenizer or template than it has.

    Other held-out rows are told: scores are then not those that the run took.

    Raises:
        CheckpointError: names what changed, from what to what.
    """
    before = _before(folder, saved)
    parts = changed_parts(before, now)
    if "data.eval" in parts:
        parts.remove("data.eval")
        say(
            f"{describe(['data.eval'], before, now)} changed since {folder.path} began: scores are on other rows"
        )
    parts = _less_rewritten(parts, before, now)
    if parts:
        raise _another(saved, describe(parts, before, now))


def check_same_base(folder: RunFolder, saved: OpenCheckpoint, now: TrainedOn) -> None:
    """Refuse to use a checkpoint with other base weights than it was trained on.

    Raises:
        CheckpointError: names the tensors that changed.
    """
    before = _before(folder, saved)
    if "base" in changed_parts(before, now):
        raise _another(saved, describe(["base"], before, now))


def _before(folder: RunFolder, saved: OpenCheckpoint | None) -> Before:
    return read_before(folder.read(RUN), None if saved is None else saved.manifest)


def _less_rewritten(parts: Sequence[str], before: Before, now: TrainedOn) -> list[str]:
    """The parts that are refused; what other versions may only write in another way is told."""
    present = {"lrft": __version__, **package_versions()}
    told = [
        part
        for part in parts
        if any(before.versions.get(name) != present[name] for name in WRITTEN_BY.get(part, ()))
    ]
    if told:
        say(
            f"{describe(told, before, now)} changed, or is only written otherwise by the versions installed now"
        )
    return [part for part in parts if part not in told]


def _not_resumed(folder: RunFolder, what: str) -> UsageError:
    return UsageError(
        f"{folder.path}: {what} changed since this run began, so it cannot be resumed; put back what was there, or "
        "train in another --out"
    )


def _another(saved: OpenCheckpoint, what: str) -> CheckpointError:
    return CheckpointError(
        f"{saved.path}: {what} changed since it was trained, so it would not be what it was; put back what was there"
    )
