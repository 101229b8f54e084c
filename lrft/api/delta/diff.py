"""`lrft delta diff` and `apply`: what fine-tuning added to one base, and the same added to another."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from lrft.core import stop
from lrft.core.notes import say
from lrft.export.delta import (
    TENSORS,
    TOKENIZER,
    Delta,
    add,
    grow,
    read_record,
    seal,
    subtract,
    write_delta,
)
from lrft.export.delta_held import Held
from lrft.export.rounding import rounded
from lrft.export.write import check_free, whole_folder, write_merged
from lrft.files.tensors_written import Gathered
from lrft.files.write import write_in
from lrft.model.causal_lm import CausalLM
from lrft.model.decisive import decisive_fields, sum_of
from lrft.model.layout import gather
from lrft.model.load import DTYPES, load_config, load_model, open_model
from lrft.model.on_call import Originals
from lrft.model.origin import public_name
from lrft.model.stopping import stops_as_trained
from lrft.model.stored import Fingerprint, NotStreamed
from lrft.model.tokenizer import load_tokenizer, pad_id
from lrft.recipe.sections import ModelSection
from lrft.registry.errors import UsageError
from lrft.registry.protocols import Tokenizer
from lrft.training.folder import RUN
from lrft.training.run_manifest import text_of

CERTIFICATE = "fidelity.json"
SHARD = "5GB"


def section_of(name: Path | str, tokenizer: Path | None = None) -> ModelSection:
    """A model that is read in float32.

    Raises:
        UsageError: it is a run, whose weights are not yet those of a model.
    """
    if (Path(name) / RUN).is_file():
        raise UsageError(f"{name}: is a run; `lrft merge {name} --out DIR` makes a model of it")
    return ModelSection(
        name=str(name), dtype="float32", tokenizer=None if tokenizer is None else str(tokenizer)
    )


def diff(
    base: Path | str,
    tuned: Path | str,
    out: Path | str,
    dtype: str = "float32",
    trust_remote_code: bool = False,
) -> Delta:
    """Write what a fine-tuned model has beyond its base at `out`; returns the record, also written there.

    Args:
        base, tuned: model folders or hub ids, of one architecture.
        dtype: of the file; float32 keeps the differences of bfloat16 models exactly.

    Raises:
        UsageError: the models do not fit, or `out` is not free.
        WriteError: the disk is full or not writable; nothing is left at `out`.
    """
    check_free(Path(out))
    before, after = (_opened(one, trust_remote_code) for one in (base, tuned))
    of_base, _ = load_tokenizer(section_of(base), trust_remote_code)
    tokenizer, _ = load_tokenizer(section_of(tuned), trust_remote_code)
    check_vocabulary(of_base, tokenizer, f"{tuned}")
    generation = after.hf.generation_config.to_json_string()
    with stop.listening(), whole_folder(Path(out)) as place:
        gathered = Gathered(place / TENSORS)
        record: Delta = {
            "base": public_name(str(base)),
            "tuned": public_name(str(tuned)),
            "dtype": dtype,
            "rows": after.hf.get_input_embeddings().num_embeddings,
            "vocabulary": vocabulary_sum(of_base),
            **_subtracted(before, after, gathered, DTYPES[dtype]),
            "told": [],
        }
        record = write_delta(gathered, record, tokenizer, generation, {}, ())
        seal(place, text_of(record))
    return record


def _subtracted(base: CausalLM, tuned: CausalLM, gathered: Gathered, dtype: torch.dtype) -> Delta:
    """Keep every difference, and count."""
    shapes, known = dict[str, list[int]](), Fingerprint()
    total = change = 0.0
    for name, tensor, own in subtract(*(Originals(dict(one.hf.named_parameters())) for one in (base, tuned))):
        known.add(name, own)
        shapes[name] = list(tensor.shape)
        total, change = total + _squares(own), change + _squares(tensor)
        if tensor.any():
            gather(gathered, name, rounded(name, tensor, dtype, stochastic=False))
    return {
        "base_fingerprint": known.finish(),
        "shapes": shapes,
        "changed": len(gathered.tensors),
        "relative_change": (change / total) ** 0.5,
    }


def _opened(name: Path | str, trust_remote_code: bool) -> CausalLM:
    """A model whose matrices stay in their files until they are asked for, where it is one that can be read so."""
    try:
        return open_model(section_of(name), trust_remote_code)
    except NotStreamed as reason:
        if str(reason):
            say(f"{name}: the model is in memory as a whole ({reason})")
        return load_model(section_of(name), trust_remote_code=trust_remote_code)


def _squares(tensor: Tensor) -> float:
    return float(tensor.double().square().sum())


def apply(
    delta: Path | str,
    target: Path | str,
    out: Path | str,
    weight: float = 1.0,
    dtype: str | None = None,
    trust_remote_code: bool = False,
) -> dict[str, object]:
    """Add the differences to a model, a newer base say, and write it at `out`; returns the certificate.

    Everything that the configuration says stays the target's; tokenizer and chat template are the tuned model's.

    Args:
        weight: of the differences; 1 is the published transfer.
        dtype: of what is written; by default the target's own.

    Raises:
        UsageError: the target has other parameters or tokens than the base had.
        WriteError: the disk is full or not writable; nothing is left at `out`.
    """
    check_free(Path(out))
    folder = Path(delta)
    record = read_record(folder)
    model = load_model(section_of(target), trust_remote_code=trust_remote_code)
    own, _ = load_tokenizer(section_of(target), trust_remote_code)
    if vocabulary_sum(own) != record["vocabulary"]:
        raise UsageError(
            f"{target}: its tokens are not those of {record['base']}, so rows of the embedding would be added to "
            "other tokens; give a target with the same tokenizer"
        )
    tokenizer, stops = load_tokenizer(section_of(target, folder / TOKENIZER), trust_remote_code)
    told = _differences(record, model, target)
    grow(model, record["rows"])
    check_shapes(model, record, str(target))
    precision = DTYPES[dtype or _own_dtype(target, trust_remote_code)]
    add(model, Held(folder, record), weight)
    for name, parameter in model.hf.named_parameters():
        parameter.data = rounded(name, parameter, precision, stochastic=False)
    stops_as_trained(model.hf, tokenizer, stops, pad_id(tokenizer, stops), True)
    found: dict[str, object] = {
        "base": record["base"],
        "tuned": record["tuned"],
        "target": public_name(str(target)),
        "weight": weight,
        "dtype": str(precision).removeprefix("torch."),
        "compressed_layers": len(record.get("layers", {})),
        "relative_error": record.get("relative_error", 0.0),
        "told": told,
    }
    for line in told:
        say(line)
    with stop.listening(f"{out} is as it was"), whole_folder(Path(out)) as place:
        write_merged(model, tokenizer, place, SHARD)
        write_in(place / CERTIFICATE, json.dumps(found, indent=2, sort_keys=True) + "\n")
    return found


def check_shapes(model: CausalLM, record: Delta, name: str) -> None:
    """Refuse a model that has other parameters than the differences are of.

    Raises:
        UsageError: names the first.
    """
    here = {key: list(parameter.shape) for key, parameter in model.hf.named_parameters()}
    odd = sorted(
        key for key in here.keys() | record["shapes"].keys() if here.get(key) != record["shapes"].get(key)
    )
    if odd:
        raise UsageError(
            f"{name}: has {here.get(odd[0], 'nothing')} where {record['base']} has "
            f"{record['shapes'].get(odd[0], 'nothing')} ({odd[0]}); give a model of the same shape"
        )


def check_vocabulary(base: Tokenizer, tuned: Tokenizer, name: str) -> None:
    """Refuse a tuned model whose tokens have other numbers than the base's; it may have more.

    Raises:
        UsageError: names the first.
    """
    after = tuned.get_vocab()
    odd = next((token for token, number in base.get_vocab().items() if after.get(token) != number), None)
    if odd is not None:
        raise UsageError(
            f"{name}: gives the token {odd!r} another number than the base; give a model with the base's tokens"
        )


def vocabulary_sum(tokenizer: Tokenizer) -> str:
    """Sum of all tokens and their numbers."""
    return sum_of(sorted([token, number] for token, number in tokenizer.get_vocab().items()))


def _differences(record: Delta, model: CausalLM, target: Path | str) -> list[str]:
    if model.fingerprint == record["base_fingerprint"]:
        return [
            f"{target} is the base of the differences, so with weight 1 the result is {record['tuned']} again"
        ]
    found = decisive_fields(section_of(target))
    rope = {
        key: value
        for key, value in found.items()
        if key.startswith("rope") or key == "max_position_embeddings"
    }
    return [f"{target} keeps its own configuration: {', '.join(f'{k} {v}' for k, v in sorted(rope.items()))}"]


def _own_dtype(target: Path | str, trust_remote_code: bool) -> str:
    said = getattr(load_config(section_of(target), trust_remote_code), "dtype", None)
    name = str(said).removeprefix("torch.") if isinstance(said, torch.dtype | str) else ""
    return name if name in DTYPES else "bfloat16"
