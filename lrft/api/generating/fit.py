"""`lrft generate-adapter fit`: a generator of adapters, fitted on those of known tasks; killed, it is gone on with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from lrft.api.generating.folder import RECORD as FILE
from lrft.api.generating.folder import Opened, made, read_generator
from lrft.api.generating.library import Library, Member, check_one_base, member_of, read_library
from lrft.api.generating.reading import Reading, read_task
from lrft.api.generating.steps import train
from lrft.build.identify import identify_base
from lrft.core import stop
from lrft.core.generate import Generator, Known, Sizes
from lrft.core.notes import say
from lrft.evaluation.progress import EvaluationBar
from lrft.evaluation.subject import Progress
from lrft.export.write import check_free
from lrft.files.fresh_folder import recover_folder
from lrft.model.causal_lm import CausalLM
from lrft.model.load import load_model
from lrft.recipe.method_words import parse_named
from lrft.registry.axes import GENERATORS
from lrft.registry.config import MethodConfig
from lrft.registry.did_you_mean import did_you_mean
from lrft.registry.errors import UsageError
from lrft.registry.json import Json
from lrft.training.device import make_accelerator


class Fitted(TypedDict):
    """What a call did, or found done.

    Attributes:
        loss: of the last step; None where nothing trains, or where this call did no step.
        samples: of each task.
        told: what a reader has to know of the library.
    """

    out: str
    generator: str
    step: int
    steps: int
    loss: float | None
    numbers: int
    parameters: int
    samples: dict[str, int]
    told: list[str]


def fit(
    library: Sequence[str],
    out: Path | str,
    method: str,
    describe: Mapping[str, str] | None = None,
    seed: int = 0,
    trust_remote_code: bool = False,
) -> Fitted:
    """Fit a generator on a library; called again, it goes on from the last saving, to the same bits.

    Args:
        library: runs, each a task with its checkpoints, or `FOLDER=RECIPE` of adapters that PEFT wrote.
        out: a new or an empty folder, or one that the same call has begun.
        method: a name, or `{method: NAME, ...}` as recipes write sections.
        describe: task -> what it is, for a generator that goes by texts.
        seed: of the start of the networks and of all that is drawn.

    Raises:
        UsageError: the library, or what is in `out`, is of no use to it.
        NumericalError: the loss is no finite number.
        WriteError: the disk is full or not writable; the last saving is intact.
    """
    config = parse_named(GENERATORS, method)
    wants = GENERATORS.get(config.method).wants(config)
    path, texts = Path(out), dict(describe or {})
    members = [member_of(word) for word in library]
    _check_texts(texts, [one.name for one in members])
    check_one_base(members)
    recover_folder(path)
    if not (path / FILE).exists():
        check_free(path)
    with stop.listening(partial(_kept, path)):
        first = members[0].recipe
        device = make_accelerator(first.train.device, first.model.dtype).device
        base = load_model(first.model, trust_remote_code=trust_remote_code, seed=first.train.seed, sums=True)
        layout, vectors, read = read_library(members, base)
        readings = [
            read_task(one.recipe, wants, texts.get(one.name), one.name, trust_remote_code) for one in members
        ]
        reads: dict[str, Json] = {one.name: r.record for one, r in zip(members, readings, strict=True)}
        decisive = _decisive(config, seed, read, reads, identify_base(first.model, base))
        begun = _begun(path, decisive)
        for line in read.told:
            say(line)
        if begun is not None and begun.finished:
            return _result(path, begun.generator, begun.record, None, vectors, read)
        base.hf.to(device)
        with EvaluationBar() as show:
            known = _known(members, vectors, readings, base, device, show)
        _check_samples(config, known)
        sizes = Sizes(layout, tuple(known[0].condition.shape), len(known))
        record = _record(config, seed, decisive, members, read, sizes, base, wants.kind)
        del base
        generator = (made(config, sizes, seed) if begun is None else begun.generator).to(device)
        if begun is None:
            generator.prepare(known)
        with EvaluationBar(unit="steps") as show:
            loss = train(path, generator, known, record, seed, begun, show)
    return _result(path, generator, record, loss, vectors, read)


def _known(
    members: Sequence[Member],
    vectors: Sequence[Tensor],
    readings: Sequence[Reading],
    base: CausalLM,
    device: torch.device,
    show: Progress,
) -> list[Known]:
    """The tasks with their conditions, where they are computed with."""
    return [
        Known(one.name, samples.to(device), reading.condition(base, show).to(device))
        for one, samples, reading in zip(members, vectors, readings, strict=True)
    ]


def _kept(path: Path) -> str:
    """What a signal leaves."""
    if (path / FILE).exists():
        return f"{path} holds the steps that were saved; the same command goes on"
    return stop.NOTHING


def _begun(path: Path, decisive: str) -> Opened | None:
    """What an earlier call has left.

    Raises:
        UsageError: it is of another library, method, description, seed or base, or of other rows.
    """
    if not (path / FILE).exists():
        return None
    found = read_generator(path)
    if found.record["decisive"] != decisive:
        raise UsageError(
            f"--out {path}: holds a generator of another library, method, description or seed, or of other rows; give "
            "another folder, or remove it"
        )
    return found


def _decisive(
    config: MethodConfig,
    seed: int,
    library: Library,
    reads: Mapping[str, Json],
    base: Mapping[str, Json],
) -> str:
    """The sum of everything that decides what a generator becomes."""
    about = {
        "generator": config.model_dump(mode="json"),
        "seed": seed,
        "tasks": library.record,
        "order": list(library.record),
        "reads": dict(reads),
        "base": dict(base),
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _record(
    config: MethodConfig,
    seed: int,
    decisive: str,
    members: Sequence[Member],
    library: Library,
    sizes: Sizes,
    base: CausalLM,
    kind: str,
) -> dict[str, Json]:
    values = base.weight_sums
    return {
        "generator": config.model_dump(mode="json"),
        "decisive": decisive,
        "seed": seed,
        "step": 0,
        "steps": 0,
        "base": base.fingerprint,
        "base_sha256": "" if values is None else values.whole,
        "base_name": members[0].recipe.model.name,
        "goes_by": kind,
        "condition": list(sizes.condition),
        "tasks": library.record,
        "shapes": {name: list(shape) for name, shape in sizes.layout.shapes.items()},
        "told": list(library.told),
    }


def _check_texts(texts: Mapping[str, str], names: Sequence[str]) -> None:
    for name in texts:
        if name not in names:
            raise UsageError(f"--describe {name}=...: no task is called so{did_you_mean(name, names)}")


def _check_samples(config: MethodConfig, known: Sequence[Known]) -> None:
    least = GENERATORS.get(config.method).least
    for one in known:
        if len(one.samples) < least:
            raise UsageError(
                f"{one.name}: has {len(one.samples)} checkpoint, and {config.method} needs {least} of every task; "
                "train it with a smaller train.save_every and a larger train.keep_last"
            )


def _result(
    path: Path,
    generator: Generator,
    record: Mapping[str, Any],
    loss: float | None,
    vectors: Sequence[Tensor],
    library: Library,
) -> Fitted:
    names = list(library.record)
    return {
        "out": str(path),
        "generator": generator.name,
        "step": record["step"],
        "steps": record["steps"],
        "loss": loss,
        "numbers": generator.sizes.layout.size,
        "parameters": sum(one.numel() for one in generator.parameters()),
        "samples": {name: len(one) for name, one in zip(names, vectors, strict=True)},
        "told": library.told,
    }
