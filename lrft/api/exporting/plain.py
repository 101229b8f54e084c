"""The change of every layer as two factors: for PEFT with a rank each, for vLLM with one."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import ClassVar

from lrft.api.exporting.form import Form
from lrft.core import stop
from lrft.core.adapted import Adapted, adapted
from lrft.core.block import AdaptedBlock
from lrft.evaluation.progress import EvaluationBar
from lrft.export.expert_form import on_experts, taken_for_experts
from lrft.export.fidelity import Comparable
from lrft.export.merge import check_mergeable
from lrft.export.pairs import ERROR, Pair, SiteRecord, Wanted, pair_of, site_records
from lrft.export.plain_form import plain_form, read_pairs
from lrft.export.record import Exported
from lrft.export.served import Served
from lrft.export.vllm_form import check_folder, one_rank
from lrft.files.write import write_in
from lrft.model.causal_lm import CausalLM
from lrft.model.load import DTYPES
from lrft.model.trained import base_parameters
from lrft.registry.errors import UsageError


class Plain(Form):
    """The change of every layer as two factors."""

    takes: ClassVar[tuple[str, ...]] = ("error", "rank", "dtype")

    @cached_property
    def modules(self) -> dict[str, Adapted]:
        """Every adapted layer by path.

        Raises:
            NotMergeable: the adapter is no change of the weight.
            UsageError: there is none, or factors cannot say what it is.
        """
        return linear_changes(self.model, self.name)

    @cached_property
    def pairs(self) -> dict[str, Pair]:
        """The change of every layer in float32."""
        wanted, found = Wanted(self.source.options.error, self.source.options.rank), {}
        with EvaluationBar() as show:
            for name, module in self.modules.items():
                stop.poll()
                found[name] = pair_of(module, wanted)
                show("layers", len(found), len(self.modules))
        return found

    @property
    def dtype(self) -> str:
        """Precision of the written factors: by default the one that the adapter computed in."""
        own = self.recipe.adapter.dtype if self.recipe.adapter is not None else None
        return self.source.options.dtype or own or self.recipe.model.dtype

    def about(self, written: dict[str, Pair]) -> Exported:
        """How far the factors as they are written are from the run's change."""
        options = self.source.options
        sites, total = site_records(self.modules, written)
        for name, one in sites.items():
            one["rank"] = self.pairs[name].rank  # without the zeros that it may be padded with
        return {
            "dtype": self.dtype,
            "error_asked": options.error,
            "rank_asked": options.rank,
            "rank": max(pair.rank for pair in written.values()),
            "relative_error": total,
            "exact_sites": sum(record["exact"] for record in sites.values()),
            "sites": sites,
            "told": self.told(sites),
        }

    def told(self, sites: dict[str, SiteRecord]) -> list[str]:
        """What the record says in words."""
        found = []
        storage = self.recipe.quantization.method
        if any("dense_base" not in module.base.original.provides for module in self.modules.values()):
            found.append(
                f"the adapter was trained on a base in {storage}; on another storage it is another function"
            )
        options = self.source.options
        beyond = [
            name
            for name, one in sites.items()
            if not one["exact"] and one["error"] > 1.05 * (options.error or ERROR)
        ]
        if options.rank is not None and beyond:
            worst = max(beyond, key=lambda name: sites[name]["error"])
            found.append(
                f"--rank {options.rank} leaves more than {options.error or ERROR:g} of the change of {len(beyond)} "
                f"layers, most of {worst}: {sites[worst]['error']:.3g}"
            )
        return found

    def remedy(self) -> str:
        if all(pair.exact for pair in self.pairs.values()):
            return "nothing was left out of the change, so write it in --dtype float32"
        return "a smaller --error or a higher --rank stays closer, and `lrft merge` leaves nothing out"

    def no_base_weights(self, server: str) -> None:
        """Refuse base weights that train beside the adapter.

        Raises:
            UsageError: names one.
        """
        no_base_weights(self.model, self.name, server)


def no_base_weights(model: CausalLM, name: str, server: str) -> None:
    """Refuse base weights that train beside the adapter.

    Raises:
        UsageError: names one.
    """
    names = [weight for weight, _ in base_parameters(model)]
    if names:
        raise UsageError(
            f"{name}: {server} takes no base weights beside an adapter, and {names[0]} trained; use `lrft merge`"
        )


def linear_changes(model: CausalLM, name: str) -> dict[str, Adapted]:
    """Every adapted layer by path, where factors can say what it adds.

    Args:
        name: of what asks, in the message.

    Raises:
        NotMergeable: the adapter is no change of the weight.
        UsageError: there is none, or factors cannot say what it is.
    """
    found = dict(adapted(model.hf))
    if not found:
        raise UsageError(f"{name}: the run has no adapter; `lrft merge` writes its weights")
    check_mergeable(model)
    if model.new_rows is not None:
        raise UsageError(f"{name}: a plain adapter has no rows for new tokens; use `lrft merge`")
    first = next(iter(found.values())).adapter
    if "own_weights" in first.provides:
        raise UsageError(f"{name}: {first.name} is the weight itself, and no change of it; use `lrft merge`")
    whole = [path for path, module in found.items() if isinstance(module, AdaptedBlock)]
    if whole:
        raise UsageError(
            f"{name}: {first.name} changes {whole[0]}, which is no linear map as those of a plain adapter; "
            "use `lrft merge`"
        )
    moved = [path for path, module in found.items() if module.merged_bias() is not None]
    if moved:
        raise UsageError(
            f"{name}: {first.name} changes the bias of {moved[0]}, and a plain adapter has none; "
            "use `lrft merge`"
        )
    if names := taken_for_experts(model):
        raise UsageError(
            f"{name}: {', '.join(names)} of a mixture of experts would be taken for the experts themselves; "
            "use `lrft merge`"
        )
    if on_experts(model):
        raise UsageError(
            f"{name}: no server reads experts of a plain adapter; use `lrft merge`, or for PEFT the adapter "
            "folder of the run"
        )
    return found


class PlainFolder(Plain):
    """The pairs for PEFT, each with its own rank."""

    def write(self, scratch: Path) -> Exported:
        pairs = self.finished()
        files, _ = plain_form(self.model, self.recipe, pairs, DTYPES[self.dtype])
        for name, content in files.items():
            write_in(scratch / name, content)
        self.write_beside(scratch)
        return self.about(_exactness(read_pairs(scratch), pairs))

    def finished(self) -> dict[str, Pair]:
        """The pairs as they are written, but for their precision."""
        return self.pairs

    def read(self, out: Path) -> Comparable | None:
        return Served(self.model, read_pairs(out))


class VllmFolder(PlainFolder):
    """The pairs for vLLM: one rank, no scale, nothing beside them."""

    def finished(self) -> dict[str, Pair]:
        if self.model.transposed:
            raise UsageError(
                f"{self.name}: vLLM has no adapters on layers that store (in, out); use `lrft merge`"
            )
        self.no_base_weights("vLLM")
        return one_rank(self.pairs)

    def write(self, scratch: Path) -> Exported:
        return {**super().write(scratch), "checklist": check_folder(scratch)}


def _exactness(read: dict[str, Pair], pairs: dict[str, Pair]) -> dict[str, Pair]:
    """The pairs that were read back; a file does not say whether something was left out."""
    return {name: Pair(pair.A, pair.B, pair.scale, pairs[name].exact) for name, pair in read.items()}
