"""GGUF files: the pairs of an adapter, or a merged model with its tokenizer, written and read back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrft.core.levels import Levelled
from lrft.export.gguf_config import check_config, rope_factors, write_config
from lrft.export.gguf_names import Names
from lrft.export.gguf_tensors import Entry, check_file, read_file, write_file
from lrft.export.gguf_tokenizer import Spoken, write_tokenizer
from lrft.export.pairs import Pair
from lrft.export.targets import PLAIN
from lrft.model.causal_lm import CausalLM
from lrft.registry.errors import LrftError

FILE_TYPES = {"float32": 0, "float16": 1, "q8_0": 7, "bfloat16": 32}  # gguf.LlamaFileType
ENDS = (".lora_a", ".lora_b")  # after the name of the weight
ROPE = "rope_freqs.weight"


def write_adapter(path: Path, names: Names, pairs: Mapping[str, Pair], dtype: str, title: str) -> int:
    """Write pairs of one rank, scale in B, as llama.cpp's `--lora` takes them; returns how many tensors were compared.

    llama.cpp multiplies by alpha over the rank of each tensor, so alpha is the rank and says nothing.

    Raises:
        UsageError: a layer has no place in the family's file.
        LrftError: the file does not read back as it was written.
    """
    gguf = names.gguf
    writer = gguf.GGUFWriter(path, names.family.arch)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(title)
    writer.add_string(gguf.Keys.Adapter.TYPE, PLAIN)
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(next(iter(pairs.values())).rank))
    entries = []
    for site, pair in pairs.items():
        name = names.site(site)
        entries.append(Entry(name + ENDS[0], pair.A.float(), dtype))
        entries.append(Entry(name + ENDS[1], names.to_file(f"{site}.weight", pair.B.float()), dtype))
    write_file(gguf, writer, entries, stochastic=False)
    return check_file(path, entries, read_file(gguf, path))


def read_adapter(path: Path, names: Names, sites: Mapping[str, Pair]) -> dict[str, Pair]:
    """The pairs of an adapter file at these sites, as llama.cpp scales them.

    Raises:
        LrftError: it is no such file.
    """
    gguf = names.gguf
    fields = gguf.GGUFReader(path).fields
    kind = fields[gguf.Keys.Adapter.TYPE].contents() if gguf.Keys.Adapter.TYPE in fields else None
    if kind != PLAIN:
        raise LrftError(f"{path}: is no adapter that llama.cpp reads ({gguf.Keys.Adapter.TYPE} is {kind})")
    alpha = float(fields[gguf.Keys.Adapter.LORA_ALPHA].contents())
    tensors = read_file(gguf, path)
    found = {}
    for site, pair in sites.items():
        A, B = (tensors[names.site(site) + end] for end in ENDS)
        scale = alpha / A.shape[0] if alpha else 1.0
        found[site] = Pair(A, names.from_file(f"{site}.weight", B), scale, pair.exact)
    return found


def write_model(
    path: Path,
    names: Names,
    dense: CausalLM,
    spoken: Spoken,
    dtype: str,
    title: str,
    stochastic: bool,
    rounded: Mapping[str, Levelled] | None = None,
) -> tuple[int, list[str]]:
    """Write the dense float32 model; returns how many tensors were compared, and what the user has to be told.

    Args:
        rounded: layers whose bytes were chosen already, by path, in one storage of GGUF's.

    Raises:
        UsageError: llama.cpp does not compute this model, or has no tokenizer like this one.
        LrftError: the file does not read back as it was written.
    """
    gguf, rows = names.gguf, dense.hf.get_input_embeddings().num_embeddings
    writer = gguf.GGUFWriter(path, names.family.arch)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(title)
    layers = {f"{name}.weight": layer for name, layer in (rounded or {}).items()}
    kind = next(iter(layers.values())).file_type if layers else ""
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}"] if kind else FILE_TYPES[dtype])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    told = [*write_config(writer, names, rows), *write_tokenizer(writer, spoken, rows, names.command)]
    entries = []
    for name, parameter in dense.hf.named_parameters():
        layer = layers.get(name)
        if layer is None:
            entries.append(Entry(names.tensor(name), names.to_file(name, parameter.detach().float()), dtype))
        else:
            parts = layer.weight().float(), layer.get_buffer("blocks")
            values, packed = (names.to_file(name, part) for part in parts)
            entries.append(Entry(names.tensor(name), values, kind, packed))
    factors = rope_factors(names, _frequencies(dense))
    if factors is not None:
        entries.append(Entry(ROPE, factors, "float32"))
    write_file(gguf, writer, entries, stochastic)
    return check_file(path, entries, read_file(gguf, path)), told


@torch.no_grad()
def read_model(path: Path, names: Names, dense: CausalLM) -> None:
    """Give `dense` the weights of a file, in place."""
    tensors = read_file(names.gguf, path)
    for name, parameter in dense.hf.named_parameters():
        parameter.copy_(names.from_file(name, tensors[names.tensor(name)]))


def refuse_early(names: Names, model: CausalLM) -> None:
    """What is refused is refused before anything is merged.

    Raises:
        UsageError: llama.cpp does not compute this model.
    """
    check_config(names)
    if model.transposed:
        raise AssertionError("no family that is written stores (in, out)")


def _frequencies(dense: CausalLM) -> Tensor:
    body: Any = dense.body
    found: Tensor = body.rotary_emb.inv_freq
    return found
