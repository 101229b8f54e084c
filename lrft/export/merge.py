"""Merging: the adapter's change added to dense weights, in float32, rounded once, never quantized again."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import torch

from lrft.core.adapted import adapted
from lrft.core.errors import LrftError, NotMergeable, UsageError
from lrft.model.causal_lm import CausalLM
from lrft.model.trained import base_parameters, frozen_layers


@torch.no_grad()
def merge_into(dense: CausalLM, model: CausalLM, *, onto: str, dtype: torch.dtype) -> None:
    """Give `dense`, a freshly loaded base, the merged weights of `model`, in place.

    W' = W + delta(W) with W the decoded base that training saw (`dequantized`) or the original weight
    (`original`), computed in float32 and cast to `dtype` once. Layers that were quantized without an adapter
    get their decoded weight too under `dequantized`, so that the merged model is the trained one.

    Raises:
        NotMergeable: the adapter is not a change of the weight; found before anything is written.
    """
    for site, module in adapted(model.hf):
        if "mergeable" not in module.adapter.provides:
            raise NotMergeable(
                f"{module.adapter.name} cannot be merged (site {site}); keep the adapter separate"
            )
    dense.hf.to(dtype)
    originals = dict(dense.hf.named_parameters())
    for name, base, wrapper in frozen_layers(model):
        target = originals[f"{name}.weight"]
        transposed = name in model.transposed
        original = (target.mT if transposed else target).float() if onto == "original" else None
        if wrapper is not None:
            weight = wrapper.merged_weight(original)
        else:
            weight = base.weight().float() if original is None else original
        target.copy_((weight.mT if transposed else weight).to(dtype))
    for name, parameter in base_parameters(model):
        originals[name].copy_(parameter)


def truncate(model: CausalLM, rank: int) -> None:
    """Keep the leading `rank` components of every adapter.

    Raises:
        UsageError: the adapter's components are not nested, or there are fewer.
    """
    for site, module in adapted(model.hf):
        adapter = module.adapter
        if "nested" not in adapter.provides:
            raise UsageError(
                f"--rank {rank}: a part of a {adapter.name} adapter is no adapter; leave the option out, or train one "
                "whose ranks are nested"
            )
        try:
            adapter.truncate(rank)
        except ValueError as error:
            raise UsageError(f"--rank {rank}: {site}: {error}") from None


def write_merged(dense: CausalLM, tokenizer: Any, out: Path, shard_size: str) -> None:
    """Write `dense` as a plain transformers folder: shards, config, generation config, tokenizer, chat template.

    Raises:
        UsageError: `out` holds something already.
        LrftError: no room, or not writable; nothing is left behind.
    """
    check_free(out)
    out = out.resolve()
    scratch = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        _write(dense, tokenizer, scratch, shard_size)
        if out.exists():
            out.rmdir()
        scratch.rename(out)
    except OSError as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise LrftError(f"--out {out}: cannot be written ({error.strerror or error})") from error


def _write(dense: CausalLM, tokenizer: Any, scratch: Path, shard_size: str) -> None:
    scratch.mkdir(parents=True)
    needed = sum(p.numel() * p.element_size() for p in dense.hf.parameters())
    if (free := shutil.disk_usage(scratch).free) < needed:
        raise OSError(errno.ENOSPC, f"{needed} bytes are needed, {free} are free")
    dense.hf.config._attn_implementation = "sdpa"
    dense.hf.save_pretrained(scratch, max_shard_size=shard_size)
    tokenizer.save_pretrained(scratch)
    for path in scratch.iterdir():
        path.chmod(0o644)  # safetensors writes for the owner alone, which no server could read


def check_free(out: Path) -> None:
    """Refuse to write over something.

    Raises:
        UsageError: the folder is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out}: is not an empty folder; give another one or remove it")


def relative_change(model: CausalLM) -> float | None:
    """|delta| / |W| over all adapted sites, Frobenius norms; None where there are none."""
    change = total = 0.0
    for _, module in adapted(model.hf):
        weight = module.pretrained_weight()
        change += float((module.merged_weight() - weight).square().sum())
        total += float(weight.square().sum())
    return (change / total) ** 0.5 if total else None
