"""From runs and folders of adapters to one base in memory, and the factors and manners of everyone it answers as."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from lrft.api.exporting.plain import linear_changes, no_base_weights
from lrft.api.opening.open_run import check_base, open_checkpoint, sample_row
from lrft.build.scoring import subject
from lrft.core import stop
from lrft.core.adapted import Adapted
from lrft.core.notes import say
from lrft.data.prompts import Asker
from lrft.evaluation.generate import batching_of
from lrft.evaluation.subject import Subject
from lrft.export.pairs import Wanted, pair_of
from lrft.export.targets import PLAIN
from lrft.files.sums import Sum, file_sum
from lrft.lab.spectra.peft_folder import CONFIG, TENSORS, is_peft, read_peft
from lrft.model.joined import joins
from lrft.registry.errors import UsageError
from lrft.serve.same_base import Part, check_same, print_of
from lrft.serve.store import Factors, Source
from lrft.training.folder import RunFolder, find

TASK = "lrft serve"


@dataclass(frozen=True)
class Voice:
    """How somebody is asked, and when they end.

    Attributes:
        adapter: name of the one in the store; None is the base.
        talks: whether whole conversations are what it was taught.
    """

    name: str
    adapter: str | None
    asker: Asker
    stop_ids: frozenset[int]
    talks: bool


@dataclass(frozen=True)
class Choir:
    """One base and all who sing on it.

    Attributes:
        sites: layers that at least one adapter changes.
    """

    subject: Subject
    voices: dict[str, Voice]
    sources: dict[str, Source]
    sites: list[str]


def gather(runs: Sequence[Path | str], trust_remote_code: bool = False) -> Choir:
    """Open what is to be served; the first is a run, whose base stays in memory.

    Args:
        runs: run folders, by path or name, their checkpoints, and folders of plain factors in PEFT's form.

    Raises:
        UsageError: the first is no run, a name occurs twice, bases differ, or an adapter is more than a change of
            linear layers.
    """
    if is_peft(runs[0]):
        raise UsageError(
            f"{runs[0]} is an adapter without a base; name a run first, whose base and chat template answer"
        )
    # The first comes last, so that no two bases are in memory at once.
    others = [_part(run, trust_remote_code, keep=False) for run in runs[1:] if not is_peft(run)]
    first = _part(runs[0], trust_remote_code, keep=True)
    recipe, text = first.recipe, first.text
    assert first.model is not None, "the first is kept"
    target = subject(recipe, text, first.model)
    check_base(recipe, target.model, TASK)
    _check_batches(target)
    for other in others:
        check_same(first, other)
    base = Path(recipe.model.name).name
    own = Asker(text.renderer, sample_row(recipe, text))
    heard = Voice(base, None, own, frozenset(text.stop_ids), _talks(own))
    voices, sources = {base: heard}, dict[str, Source]()
    by_name = {part.name: part for part in others}
    for run in runs:
        if is_peft(run):
            source, voice = _foreign(Path(run), target.hf, heard)
        else:
            name = _name(find(run))
            source, voice = _own(first if name == first.name else by_name[name])
        if voice.name in voices:
            raise UsageError(
                f"{voice.name} is the name of two; rename a folder, as the name is the `model` asked for"
            )
        voices[voice.name], sources[voice.name] = voice, source
    sites = list(dict.fromkeys(site for source in sources.values() for site in source.shapes))
    return Choir(target, voices, sources, sites)


def _check_batches(target: Subject) -> None:
    """Refuse a model whose rows cannot be computed together as each is alone.

    Raises:
        UsageError: says why, and what answers.
    """
    if (batching := batching_of(target)) != "padded":
        raise UsageError(
            f"{TASK}: {type(target.hf).__name__} does not answer in batches as it does alone (prompts: {batching}); "
            "lrft generate answers a file of prompts"
        )
    if not joins(target.model):
        raise UsageError(
            f"{TASK}: {type(target.hf).__name__} keeps more of a row than keys and values of its positions, so rows "
            "that come at different times cannot be computed together; lrft generate answers a file of prompts"
        )


def _part(run: Path | str, trusted: bool, keep: bool) -> Part:
    stop.poll()
    folder = find(run)
    folder.trusted = trusted
    opened = open_checkpoint(folder)
    if opened.adaptation.team.size > 1:
        raise UsageError(f"{TASK}: one process serves; start it without a launcher")
    model, name = opened.adaptation.model, _name(folder)
    asking = f"{TASK} {name}"
    modules = linear_changes(model, asking)
    no_base_weights(model, asking, "a server of adapters")
    if model.features:
        raise UsageError(
            f"{asking}: its adapter goes by {', '.join(model.features)} of a row, which no request has"
        )
    factors, prints = {}, {}
    for site, module in modules.items():
        stop.poll()
        if (kind := module.adapter.site.kind) != "linear":
            raise UsageError(
                f"{asking}: it changes {site}, which is no linear layer ({kind}); use `lrft merge`"
            )
        factors[site], prints[site] = _factors(asking, site, module), print_of(module)
    kept = model if keep else None
    return Part(name, opened.recipe, opened.text, kept, model.fingerprint, factors, prints)


def _factors(asking: str, site: str, module: Adapted) -> tuple[Tensor, Tensor]:
    pair = pair_of(module, Wanted())
    if not pair.exact:
        raise UsageError(
            f"{asking}: the change of {site} has no exact factors of low rank; `lrft export --for {PLAIN} --error E` "
            "makes an adapter of what fits, which can be served"
        )
    dtype = module.base.compute_dtype
    return pair.A.to(dtype), (pair.scale * pair.B.float()).to(dtype)


def _own(part: Part) -> tuple[Source, Voice]:
    asker = Asker(part.text.renderer, sample_row(part.recipe, part.text))
    factors = part.factors
    source = Source(part.name, _shapes(factors), lambda: factors)
    return source, Voice(part.name, part.name, asker, frozenset(part.text.stop_ids), _talks(asker))


def _foreign(path: Path, hf: nn.Module, base: Voice) -> tuple[Source, Voice]:
    """A folder in PEFT's form, read again whenever it is brought into memory; asked as the base is."""
    known = _sums(path)
    folder = read_peft(path)
    if folder.left_out or any(pair.magnitude is not None for pair in folder.pairs.values()):
        extra = next(iter(folder.left_out), "magnitudes")
        raise UsageError(f"{path} has {extra}, and only two plain factors a layer are served")

    def read() -> Factors:
        if _sums(path) != known:
            raise UsageError(
                f"{path}: is another adapter than when the server began; start it anew to serve this one"
            )
        again = read_peft(path)
        found = {site: again.factors(site) for site in again.pairs}
        for site, pair in found.items():  # rows of others are in the same products
            if not all(one.isfinite().all() for one in pair):
                raise UsageError(f"{path}: holds numbers of {site} that are not finite; name an earlier one")
        return found

    shapes = _shapes(read())
    for site, (_, inputs, outputs) in shapes.items():
        _check_site(path, hf, site, inputs, outputs)
    name = path.resolve().name
    say(f"{path}: asked by the chat template of {base.name}, as the folder does not say how it was trained")
    return Source(name, shapes, read), replace(base, name=name, adapter=name)


def _sums(folder: Path) -> list[Sum]:
    return [file_sum(folder / name) for name in (CONFIG, TENSORS)]


def _check_site(path: Path, hf: nn.Module, site: str, inputs: int, outputs: int) -> None:
    try:
        module = hf.get_submodule(site)
    except AttributeError:
        raise UsageError(f"{path} changes {site}, which the base does not have") from None
    layer = module.base if isinstance(module, Adapted) else module
    found = (getattr(layer, "in_features", None), getattr(layer, "out_features", None))
    if found != (inputs, outputs):
        raise UsageError(
            f"{path} fits a layer {site} of {inputs} to {outputs}, and the base has {found[0]} to {found[1]}"
        )


def _shapes(factors: Factors) -> dict[str, tuple[int, int, int]]:
    return {site: (A.shape[0], A.shape[1], B.shape[0]) for site, (A, B) in factors.items()}


def _talks(asker: Asker) -> bool:
    return bool(asker.text("Hi").messages)


def _name(folder: RunFolder) -> str:
    return folder.path.resolve().name
