"""The order of the rows: a pure function of (seed, epoch)."""

from __future__ import annotations

import hashlib

import torch


def permutation(n: int, seed: int, epoch: int, of: str = "order") -> list[int]:
    """The order in which epoch `epoch` (from 0) visits n rows.

    Drawn by torch's CPU generator, seeded with a hash of (seed, epoch): the same in every process, on every
    machine, and untouched by any other random draw.

    Args:
        of: what is drawn; another draw of the same seed has another name.
    """
    digest = hashlib.sha256(f"lrft data {of} {seed} {epoch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    order: list[int] = torch.randperm(n, generator=generator).tolist()
    return order
