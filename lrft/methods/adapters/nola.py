"""NOLA: LoRA's factors as sums of random matrices that are never stored, of which only the coefficients train."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lrft.core.adapter import Branch, Formed, LowRank, PeftForm
from lrft.core.params import Site
from lrft.core.peft import lora_keys
from lrft.ops.compiled import fusible
from lrft.ops.native import kernels_on
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import AdapterConfig, Field
from lrft.registry.json import Json

CHUNK = 2**20  # random numbers held at a time: 4 MB, which stay in a cache between the steps of the hash


def nola_form_keys(config: NOLA.Config, with_start: bool) -> dict[str, Json]:
    """A plain LoRA of the same rank."""
    return lora_keys(config.rank, config.alpha)


def nola_form_tensors(adapter: NOLA, start: NOLA | None) -> dict[str, Tensor]:
    """A and B as formed."""
    return dict(zip("AB", adapter.branch().pair(), strict=True))


@ADAPTERS.register
class NOLA(LowRank):
    """LoRA's factors as sums of random matrices made from a seed: the number trained does not depend on the rank.

        A  = A0 + sum_i a_i M_i,  B = sum_j b_j N_j,  i, j = 1 ... k
        y  = x W^T + bias + s (x A^T) B^T
        W' = W + s B A

    with k = `bases`, r = `rank`, s = `alpha` / r. M_i and N_j have entries ~ U(-1, 1) / sqrt(k), A0 ~ U(-1/sqrt(in),
    1/sqrt(in)); all are frozen and made anew from a seed whenever they are needed, once in the forward and once in the
    backward pass, 2^20 numbers at a time. There is no dropout.

    Shapes: A, A0, M_i (r, in); B, N_j (out, r); a (k) = b (k) = 0, so W' = W at step 0.
    Trains: 2 k numbers per site; checkpoints hold them and a seed. A step makes k r (in + out) random numbers at every
    site in each of its two passes.
    Source: Koohpayegani et al., "NOLA: Compressing LoRA using Linear Combination of Random Basis", ICLR 2024, arXiv
    2310.02556. The offset A0, the start at 0 and the factor 1/sqrt(k) are those of the authors' code (the paper's text
    has A as the sum alone, which with coefficients of 0 would never leave its start).
    Departures: numbers come from a hash of their place and the seed, not from torch's generator, so that they are the
    same on every device and under every version.
    """

    provides = {"adapters", "mergeable", "linear_delta"}
    roles = {"a": "vector", "b": "core"}  # the change is linear in b
    peft = PeftForm(nola_form_keys, nola_form_tensors)

    config: Config

    class Config(AdapterConfig):
        rank: int = Field(16, gt=0, le=65_536)
        alpha: float = Field(4.0, gt=0, le=1_000_000)
        bases: int = Field(512, gt=0, description="random matrices for A, and as many for B")

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.scaling = config.alpha / config.rank
        self.a = nn.Parameter(torch.zeros(config.bases))
        self.b = nn.Parameter(torch.zeros(config.bases))
        drawn = torch.randint(2**31 - 1, ()) ^ (zlib.crc32(site.name.encode()) >> 1)
        self.register_buffer("seed", drawn)
        self._key: tuple[int, int] | None = None

    def reset(self) -> None:
        nn.init.zeros_(self.a)
        nn.init.zeros_(self.b)

    @property
    def A_shape(self) -> tuple[int, int]:
        """(r, in)."""
        return self.config.rank, self.site.in_features

    @property
    def B_shape(self) -> tuple[int, int]:
        """(out, r)."""
        return self.site.out_features, self.config.rank

    def _seed(self) -> int:
        """The seed as a number, read from the device once and again after a checkpoint was loaded."""
        buffer = self.get_buffer("seed")
        if buffer.is_meta:
            return 0  # where shapes alone are asked for, nothing is drawn
        if self._key is None or self._key[0] != buffer._version:
            self._key = (buffer._version, int(buffer))
        return self._key[1]

    def branch(self) -> Branch:
        seed, A_shape, B_shape = self._seed(), self.A_shape, self.B_shape

        def form(dtype: torch.dtype, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            A = _offset(A_shape, seed, a.device) + combination(a, A_shape, seed + 1)
            return A, combination(b, B_shape, seed + 2)

        def pull(
            dtype: torch.dtype, dA: Tensor | None, dB: Tensor | None, a: Tensor, b: Tensor
        ) -> tuple[Tensor, Tensor]:
            assert dA is not None and dB is not None
            return products(dA, len(a), seed + 1), products(dB, len(b), seed + 2)

        return Branch(scale=self.scaling, formed=Formed((self.a, self.b), form, pull, kept=True))

    @staticmethod
    def count(config: Config, site: Site) -> int:
        return int(2 * config.bases)


def combination(coefficients: Tensor, shape: tuple[int, int], seed: int) -> Tensor:
    """sum_i c_i M_i in float32, the M_i of this shape made from the seed."""
    total = torch.zeros(math.prod(shape), device=coefficients.device)
    for first, matrices in _matrices(len(coefficients), shape, seed, coefficients.device):
        total.addmv_(matrices.mT, coefficients[first : first + len(matrices)].float())
    return total.mul_(len(coefficients) ** -0.5).view(shape)


def products(gradient: Tensor, count: int, seed: int) -> Tensor:
    """<gradient, M_i> for every i, (count,): the gradient of the coefficients."""
    shape = (gradient.shape[0], gradient.shape[1])
    flat = gradient.float().flatten()
    parts = [matrices @ flat for _, matrices in _matrices(count, shape, seed, gradient.device)]
    return torch.cat(parts).mul_(count**-0.5)


def _offset(shape: tuple[int, int], seed: int, device: torch.device) -> Tensor:
    """A0 (r, in)."""
    return uniform(0, math.prod(shape), seed, device).mul_(shape[1] ** -0.5).view(shape)


def _matrices(
    count: int, shape: tuple[int, int], seed: int, device: torch.device
) -> Iterator[tuple[int, Tensor]]:
    """Index of the first and (c, out * in) of the next few matrices, entries in [-1, 1)."""
    size = math.prod(shape)
    step = max(1, CHUNK // size)
    for first in range(0, count, step):
        many = min(step, count - first)
        yield first, uniform(first * size, many * size, seed, device).view(many, size)


def uniform(first: int, count: int, seed: int, device: torch.device | str = "cpu") -> Tensor:
    """Numbers `first` to `first + count` of the sequence of a seed, uniform in [-1, 1), float32.

    A hash of 32 bits of place and seed (MurmurHash3's finalizer, the seed coming in before each multiplication, so that
    two seeds are no shifts of one sequence), in integers, of which 24 bits are used: exact, so the same everywhere.
    """
    place, key = (seed * 0x9E3779B1 + first) % 2**32, (seed * 0x85EBCA77 + 0x165667B1) % 2**32
    return _hashed(count, _signed(place), _signed(key), torch.device(device))


def _hashed(count: int, place: int, key: int, device: torch.device) -> Tensor:
    """The hash of the `count` places from `place` on."""
    if (kernels := kernels_on(device)) is None:
        return _hashed_plainly(count, place, key, device)
    numbers = torch.empty(count, device=device)
    kernels("hashed", numbers, count, place, key)
    return numbers


@fusible
def _hashed_plainly(count: int, place: int, key: int, device: torch.device) -> Tensor:
    z = torch.arange(count, dtype=torch.int32, device=device).add_(place)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        z ^= (z >> shift).bitwise_and_(2 ** (32 - shift) - 1)  # a logical shift
        z.bitwise_xor_(key).mul_(_signed(factor))
    return (z >> 8).float().mul_(2.0**-23)


def _signed(bits: int) -> int:
    """32 bits as the two's complement number that int32 holds."""
    return bits - 2**32 if bits >= 2**31 else bits
