"""Whether the files of a folder are whole, and whether what reads them knows what they say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

from safetensors import SafetensorError, safe_open

from lrft.core.peft import LORA_NAMES
from lrft.export.checks import Check, check
from lrft.export.peft_format import PREFIX
from lrft.export.peft_keys import known_keys
from lrft.export.plain_form import CONFIG, TENSORS
from lrft.export.record import RECORD, Exported
from lrft.files.json import read_object
from lrft.files.made_records import AdapterConfig, FidelityRecord
from lrft.files.records import Index
from lrft.files.sums import difference
from lrft.files.tensors import check_tensor_file
from lrft.model.origin import HUB_ID
from lrft.registry.errors import DamagedFile, MissingFile
from lrft.registry.json import Json


def check_sums(folder: Path, record: Exported) -> list[Check]:
    """The files against the sums in their record."""
    wrong, said = [], record.get("files", {})
    for name, entry in said.items():
        path = folder / name
        try:
            if difference(path, entry, folder):
                wrong.append(f"{name} is not what was written")
        except DamagedFile as error:
            wrong.append(f"{name} {error.problem}")
    return [check(f"the {len(said)} files are as they were written", wrong)]


def check_tensors(folder: Path) -> list[Check]:
    """Every safetensors file opens, and every number in it is finite."""
    files = sorted(folder.glob("*.safetensors"))
    torn, odd = [], []
    for path in files:
        try:
            check_tensor_file(path, folder)
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (no mapping)
                    tensor = file.get_tensor(name)
                    if tensor.is_floating_point() and not tensor.isfinite().all():
                        odd.append(name)
        except (SafetensorError, OSError, ValueError) as error:
            torn.append(f"{path.name} ({error})")
        except DamagedFile as error:
            torn.append(f"{path.name} {error.problem}")
    return [
        check(f"{len(files)} files of tensors open", torn, "{}"),
        check("every number is finite", odd, "{} is not"),
    ]


def check_index(folder: Path) -> list[Check]:
    """Every file that an index of shards names is there."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return []
    names = sorted(set(read_object(index, Index, within=folder)["weight_map"].values()))
    return [
        check(
            "every shard is there", [name for name in names if not (folder / name).is_file()], "{} is missing"
        )
    ]


def check_adapter(folder: Path) -> tuple[list[Check], list[str]]:
    """An adapter that PEFT loads: its configuration and its tensors fit; and what has to be told of it."""
    config: dict[str, Json] = read_object(folder / CONFIG, AdapterConfig, within=folder)
    told, found = [], list(_named(folder, config))
    base = str(config.get("base_model_name_or_path"))
    if Path(base).is_absolute():
        told.append(
            f"{CONFIG} names its base by a path of one machine, {base}; elsewhere the base has to be given"
        )
    elif HUB_ID.fullmatch(base) and config.get("revision") is None:
        told.append(f"{CONFIG} names no revision of {base}: a later one may be another model")
    kind = str(config.get("peft_type"))
    try:
        known = known_keys(kind)
    except KeyError:
        return [*found, check("PEFT knows the method", [kind], "the installed PEFT has no {}")], told
    if known is None:
        return found, [
            *told,
            "PEFT is not installed here, so the keys of its configuration were not looked at",
        ]
    version, keys = known
    strangers = sorted(config.keys() - keys)
    return [
        *found,
        check(f"PEFT {version} knows every key of {CONFIG}", strangers, "it does not know {}"),
    ], told


def _named(folder: Path, config: Mapping[str, Json]) -> Iterator[Check]:
    """The rank of every pair is that of the configuration, where the pairs are plain."""
    if not (folder / TENSORS).is_file():
        yield check(f"{TENSORS} is there", ["missing"])
        return
    rank, ranks = config.get("r"), config.get("rank_pattern") or {}
    if config.get("peft_type") != "LORA" or not isinstance(ranks, dict):
        return
    wrong, end = [], f".{LORA_NAMES['A']}"
    with safe_open(folder / TENSORS, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 (no mapping)
            if name.endswith(end):
                site = name.removeprefix(PREFIX).removesuffix(end)
                own = next((r for key, r in ranks.items() if site == key or site.endswith(f".{key}")), rank)
                if file.get_slice(name).get_shape()[0] != own:
                    wrong.append(site)
    yield check("every rank is that of the configuration", wrong, "not of {}")


def read_record(folder: Path) -> Exported | None:
    """The record of an exported or a merged folder; None without one.

    Raises:
        DamagedFile: it is no such record.
    """
    try:
        return cast("Exported", read_object(folder / RECORD, FidelityRecord, within=folder))
    except MissingFile:
        return None


def check_fidelity(record: Exported) -> list[Check]:
    """What was written is as close to the run as was asked."""
    if "kl_mean" not in record:
        return []
    largest, found = record["tolerance"], (record["kl_mean"], abs(record["loss_difference"]))
    wrong = [] if max(found) <= largest else [f"KL {found[0]:.3g}, loss {record['loss_difference']:+.3g}"]
    return [check(f"within {largest:g} nats per token of the run", wrong)]
