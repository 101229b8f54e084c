"""Tensors in the pages of a file, and the thread that brings them and takes them away beside the computing."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from math import prod

import torch
from torch import Tensor

from lrft.files.pages import PageFile

ALIGNED = 64  # bytes between the beginnings of two tensors: a line of the caches
SMALL = 4096  # bytes of a tensor that is not worth a page


class Slot:
    """Room for tensors.

    Args:
        file: where.
        size: bytes.
    """

    def __init__(self, file: PageFile, size: int) -> None:
        self._pages = file.claim(size)
        self._bytes = torch.frombuffer(self._pages.memory, dtype=torch.uint8)

    @property
    def size(self) -> int:
        """Bytes."""
        return self._pages.size

    def tensor(self, shape: Sequence[int], dtype: torch.dtype, offset: int = 0) -> Tensor:
        """The bytes from `offset` on as a tensor, no copy of them."""
        return self._bytes[offset : offset + prod(shape) * dtype.itemsize].view(dtype).view(shape)

    @torch.no_grad()
    def lay(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copy tensors in, one after another; they as they lie here, contiguous."""
        found, end = {}, 0
        for name, tensor in tensors.items():
            found[name] = self.tensor(tensor.shape, tensor.dtype, end).copy_(tensor)
            end += aligned(tensor.nbytes)
        return found

    def fetch(self) -> None:
        """Have every page in memory when this returns; for a thread beside the one that computes."""
        self._pages.call()
        self._bytes[:: mmap.PAGESIZE].max()

    def drop(self) -> None:
        """Take no memory until the next touch."""
        self._pages.drop()


def aligned(size: int) -> int:
    """Bytes from the beginning of a tensor of that size to that of the next."""
    return -(-size // ALIGNED) * ALIGNED


class Beside:
    """One thread that does what it is given, in order, while others compute.

    Attributes:
        closed: it takes nothing any more; whoever still computes reads for himself.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "offload")
        self.closed = False

    def do(self, work: Callable[..., None], *given: object) -> Future[None]:
        """Begin; what it raises is raised where the result is asked for."""
        return self._pool.submit(work, *given)

    def finish(self) -> None:
        """Wait for what was begun; for tests and for whoever measures."""
        self._pool.submit(lambda: None).result()

    def close(self) -> None:
        """Do nothing more."""
        self.closed = True
        self._pool.shutdown(cancel_futures=True)
