"""`Pages`: one block of memory for the factors of all adapters, given out in pages of equal size (S-LoRA, section 5).

Source: https://arxiv.org/abs/2311.03285. There a page is one row of a factor of the model's width; here a row that is
wider takes several, so that factors of every shape and rank come from one block, and what one adapter gives back fits
the next one whatever its ranks are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Placed:
    """A matrix in pages.

    Attributes:
        rows, columns: of the matrix.
        pages: where its rows stand, one after the other; a range where they follow one another.
    """

    rows: int
    columns: int
    pages: range | Tensor


class Pages:
    """Memory for matrices, a page the smallest piece.

    Args:
        limit_bytes: of the block, all of which is taken at once; whole pages of it are used.
        width: numbers of a page.
    """

    def __init__(self, limit_bytes: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self.width = width
        self.total = limit_bytes // (width * dtype.itemsize)
        self._memory = torch.zeros(self.total, width, dtype=dtype, device=device)
        self._free = list(range(self.total))  # ascending

    @property
    def free(self) -> int:
        """How many pages hold nothing."""
        return len(self._free)

    def needed(self, rows: int, columns: int) -> int:
        """Pages of a matrix."""
        return rows * -(-columns // self.width)

    def put(self, matrix: Tensor) -> Placed:
        """Copy a matrix (rows, columns) in; pages that follow one another where there are so many.

        Raises:
            MemoryError: fewer pages are free than it takes.
        """
        rows, columns = matrix.shape
        count = self.needed(rows, columns)
        pages = self._take(count)
        padded = torch.zeros(count, self.width, dtype=self._memory.dtype, device=self._memory.device)
        padded.view(rows, -1)[:, :columns] = matrix
        self._memory[_index(pages)] = padded
        return Placed(rows, columns, pages)

    def read(self, placed: Placed) -> Tensor:
        """The matrix: a view where its pages follow one another, else gathered."""
        found = self._memory[_index(placed.pages)]
        return found.view(placed.rows, -1)[:, : placed.columns]

    def give_back(self, placed: Placed) -> None:
        """Its pages are free again."""
        pages = placed.pages
        self._free = sorted([*self._free, *(pages if isinstance(pages, range) else pages.tolist())])

    def _take(self, count: int) -> range | Tensor:
        if count > len(self._free):
            raise MemoryError(f"{count} pages asked for, {len(self._free)} free")
        for place in range(len(self._free) - count + 1):
            if self._free[place + count - 1] - self._free[place] == count - 1:
                first = self._free[place]
                del self._free[place : place + count]
                return range(first, first + count)
        taken, self._free = self._free[:count], self._free[count:]
        return torch.tensor(taken, device=self._memory.device)


def _index(pages: range | Tensor) -> slice | Tensor:
    return slice(pages.start, pages.stop) if isinstance(pages, range) else pages
