"""Merging: the adapter's change added to dense weights, in float32, rounded once, never quantized again."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import torch

from lrft.core.adapted import adapted
from lrft.core.errors import LrftError, NotMergeable, UsageError
from lrft.model.attach import frozen_layers
from lrft.model.causal_lm import CausalLM


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


def relative_change(model: CausalLM) -> float:
    """|delta| / |W| over all adapted sites, Frobenius norms."""
    change = total = 0.0
    for _, module in adapted(model.hf):
        weight = module.pretrained_weight()
        change += float((module.merged_weight() - weight).square().sum())
        total += float(weight.square().sum())
    return (change / max(total, 1e-30)) ** 0.5
