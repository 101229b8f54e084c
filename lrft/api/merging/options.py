"""What a merge was asked for, over what the run's recipe says, and whether its adapter can be merged at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lrft.api.merging.added import add_all
from lrft.api.opening.open_run import open_run
from lrft.build.text import Text
from lrft.core.stages import SitePlan
from lrft.export.fidelity import Fidelity
from lrft.export.gguf_names import import_gguf
from lrft.export.merge import check_mergeable
from lrft.export.reduce import only_rows_with, truncate
from lrft.model.causal_lm import CausalLM
from lrft.model.in_bits import check_reader
from lrft.recipe.schema import Recipe
from lrft.recipe.sections import ModelSection
from lrft.registry.axes import ADAPTERS, QUANTIZERS
from lrft.registry.errors import NotMergeable, UsageError
from lrft.training.chosen import open_chosen
from lrft.training.folder import RunFolder
from lrft.training.relied import own_recipe, plan_of

LEVELS = {
    "levels",
    "file_levels",
    "integer_levels",
}  # what a storage provides that merged weights can be rounded into


def check_planned(folder: RunFolder) -> None:
    """Refuse, by the plan of the run and before anything is loaded, an adapter that no dense weight can say.

    Raises:
        NotMergeable: names the first site.
    """
    section = own_recipe(folder.path).recipe.adapter
    if section is None:
        return
    with open_chosen(folder) as saved:
        planned = plan_of(saved, folder)
    for record in planned.values():
        entry = SitePlan.of(record, type(section))
        if entry.config is not None and (
            reason := ADAPTERS.get(section.method).why_not_merged(entry.config, entry.site)
        ):
            raise NotMergeable(reason)


def check_bits(
    recipe: Recipe, storage: str | None, rank: int | None, rounding: str | None, factors: bool = False
) -> None:
    """Refuse, before anything is loaded, what `--requantize`, `--keep-rank` and `--factors` cannot do.

    Raises:
        UsageError: names the option.
        NotMergeable: the run scores texts.
    """
    if factors and (storage is not None or rounding not in (None, "nearest")):
        other = "--requantize" if storage is not None else f"--rounding {rounding}"
        raise UsageError(f"--factors: the factors of a layer are rounded to nearest; leave {other} out")
    if storage is None:
        if rank is not None:
            raise UsageError(
                f"--keep-rank {rank}: is what --requantize leaves; add --requantize, or leave it out"
            )
        return
    known = {name: LEVELS & QUANTIZERS.declared(name).provides for name in QUANTIZERS.names()}
    names = [name for name, traits in known.items() if traits]
    if storage not in names:
        raise UsageError(f"--requantize {storage}: choose {', '.join(names[:-1])} or {names[-1]}")
    in_file = "file_levels" in known[storage]
    if in_file and rank is not None:
        raise UsageError(
            f"--keep-rank {rank}: llama.cpp reads no adapter beside a {storage} file as it was measured; leave it out"
        )
    if rounding is not None:
        raise UsageError(
            f"--rounding {rounding}: with --requantize layers are rounded by feedback, everything else stochastically; "
            "leave it out"
        )
    if recipe.prune is not None:
        raise NotMergeable(
            "--requantize: a model that was pruned is not read back in few bits here; merge without it"
        )
    if recipe.model.head is not None:
        raise NotMergeable(
            "--requantize: a model with a score head is not read back in few bits here; merge without it"
        )
    _check_readers(storage, known[storage])


def _check_readers(storage: str, provided: set[str]) -> None:
    """Refuse where what is written could not be read back here."""
    if "file_levels" in provided:
        import_gguf(f"--requantize {storage}")
    elif "levels" in provided:
        check_reader()


def opened(
    folder: RunFolder, rank: int | None, add: Sequence[Path | str], features: str | None
) -> tuple[Recipe, Text, CausalLM, Fidelity]:
    """A run's recipe, data and model, reduced to what is to be merged; and what of that the record says.

    Args:
        rank: keep only so many leading rank components.
        add: runs or PEFT folders whose changes are added.
        features: of the rows that the merged model is for, with commas between them.

    Raises:
        NotMergeable: adapters are no change of the weight.
        UsageError: there is no such feature, or rank.
    """
    if features is None:
        check_planned(folder)
    recipe, text, adaptation = open_run(folder, scores=True)
    model = adaptation.model
    if features is not None:
        only_rows_with(model, tuple(name.strip() for name in features.split(",") if name.strip()))
    check_mergeable(model)
    if rank is not None:
        truncate(model, rank)
    add_all(recipe, model, add)
    named: Fidelity = {} if folder.chosen is None else {"checkpoint": folder.chosen.name}
    named |= {} if rank is None else {"rank": rank}
    named |= {} if features is None else {"features": features}
    named |= {"added": [str(other) for other in add]} if add else {}
    return recipe, text, model, named


def with_options(recipe: Recipe, onto: str | None, rounding: str | None, dtype: str | None) -> Recipe:
    """The recipe with what the command was asked for, and every default of `export` that depends on it."""
    section = recipe.export
    precision = dtype or section.dtype or recipe.model.dtype
    chosen = None if precision == "float32" else rounding or section.rounding or "stochastic"
    update = {"onto": onto or section.onto, "dtype": precision, "rounding": chosen}
    return recipe.model_copy(update={"export": section.model_copy(update=update)})


def as_written(section: ModelSection, place: Path, dtype: str | None) -> ModelSection:
    """The model section of what a merge wrote to `place`, whose own files say the rest."""
    update = {
        "name": str(place),
        "revision": None,
        "weights": "pretrained",
        "tokenizer": None,
        "adapter": None,
        "add_tokens": None,  # its tokenizer has them
        "resize": None,
        "rope_scaling": None,  # its own configuration says these
        "context": None,
        "dtype": dtype,
    }
    return section.model_copy(update=update)
