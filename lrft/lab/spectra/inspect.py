"""`lrft inspect`: what training did to the weights, read off their spectra."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from lrft.core import stop
from lrft.core.notes import is_lead, say
from lrft.core.plain import plain
from lrft.evaluation.subject import Progress, silent
from lrft.files.json import with_sum
from lrft.lab.spectra.measure import Look, measure
from lrft.lab.spectra.of_peft import changes_of_peft
from lrft.lab.spectra.of_run import changes_of_run
from lrft.lab.spectra.peft_folder import is_peft
from lrft.lab.spectra.record import FORMAT, Inspection, SiteRecord
from lrft.lab.spectra.subject import Subject
from lrft.registry.errors import UsageError
from lrft.registry.json import to_section
from lrft.training.folder import RunFolder, find

INSPECTIONS = "inspect"  # the folder, within that of a run


def inspect(
    run: RunFolder | Path | str | None = None,
    look: Look | None = None,
    base: str | None = None,
    progress: Progress = silent,
    trust_remote_code: bool = False,
) -> Inspection:
    """Inspect a run, or a folder that PEFT wrote; that of a run is kept as `inspect/step-N.json` in its folder.

    Args:
        run: a run folder, its path or name under runs/, or one of its checkpoints, or a folder with an
            adapter_config.json; by default the latest run.
        look: how closely.
        base: model that a PEFT folder belongs to; by default the one that its configuration names.
        progress: hears (what, done, total).
        trust_remote_code: let code run that comes with the base model.

    Raises:
        UsageError: it is neither, or has nothing to look at; or `base` is given for a run.
        NotMergeable: what trained is no change of a weight.
        NumericalError: a change is not finite.
    """
    look = look or Look()
    if isinstance(run, Path | str) and is_peft(run):
        return _inspection(changes_of_peft(Path(run), base, trust_remote_code), look, progress)
    if base is not None:
        raise UsageError("--base: a run names its own base; the option is for folders that PEFT wrote")
    folder = find(run)
    folder.trusted = trust_remote_code
    found = _inspection(changes_of_run(folder), look, progress)
    if is_lead():
        RunFolder(folder.path / INSPECTIONS).write(
            f"step-{found['step']}.json", with_sum(to_section(plain(found)))
        )
    return found


def _inspection(subject: Subject, look: Look, progress: Progress) -> Inspection:
    sites: list[SiteRecord] = []
    for change in subject.changes:
        progress("inspecting layers", len(sites), subject.count)
        with stop.at_once():
            sites.append(measure(change, look))
    progress("inspecting layers", len(sites), subject.count)
    if subject.left_out:
        say(f"left out: {_shortened(list(subject.left_out))} ({next(iter(subject.left_out.values()))})")
    counts = [site["intruders"]["count"] for site in sites if site["intruders"] is not None]
    return {
        "format": FORMAT,
        "of": subject.of,
        "kind": subject.kind,
        "step": subject.step,
        "method": subject.method,
        "base": subject.base,
        "top": look.top,
        "below": look.below,
        "relative": relative(sites),
        "intruders": sum(counts) if counts else None,
        "left_out": subject.left_out,
        "sites": sites,
    }


def relative(sites: Sequence[SiteRecord]) -> float | None:
    """|dW| / |W| over the sites whose W is known; None where there is none."""
    known = [(site["norm"], site["weight_norm"]) for site in sites if site["weight_norm"]]
    if not known:
        return None
    change = math.fsum(norm**2 for norm, _ in known)
    return math.sqrt(change / math.fsum((weight or 0.0) ** 2 for _, weight in known))


def _shortened(names: list[str]) -> str:
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")
