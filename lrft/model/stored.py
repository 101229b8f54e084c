"""Weights that are still in their files, and the identity of a model, which is known once each has been looked at."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn

from lrft.core import stop
from lrft.model.hf import HF
from lrft.model.known_sums import Summing
from lrft.model.promised import NotStreamed as NotStreamed
from lrft.model.promised import Stored as Stored
from lrft.model.promised import read_tensor as read_tensor
from lrft.model.promised import shape_of as shape_of
from lrft.model.promised import stored_at as stored_at
from lrft.model.sites import linear_shape
from lrft.model.weight_sums import WeightSums, stored_tensors

SAMPLES = 1024  # values of a parameter that its fingerprint looks at


class Unread:
    """The layers of a model whose weights have not been read, and its identity, which grows as they are.

    Args:
        hf: as `load_promised` gave it.
        summing: hears of every tensor that is read; None where nobody asks for the sums.

    Attributes:
        sums: of all values, once it is finished.
    """

    def __init__(self, hf: HF, summing: Summing | None = None) -> None:
        self.hf, self.summing = hf, summing
        self.sums: WeightSums | None = None
        self.names = [name for name, parameter in hf.named_parameters() if stored_at(parameter) is not None]
        kept = set(self.names)
        self.samples = {n: _sample(n, p) for n, p in hf.named_parameters() if n not in kept}
        for name, tensor in stored_tensors(hf):
            if name not in kept:
                self._add(name, tensor)

    def weight(self, name: str) -> Tensor:
        """The weight of the layer called `name` as its parameter will hold it, read and not kept."""
        parameter = self.hf.get_parameter(f"{name}.weight")
        stored = stored_at(parameter)
        return parameter.detach() if stored is None else stored.read(parameter.dtype)

    def read(self, name: str) -> None:
        """Give the layer called `name` its weight, if it waits for one."""
        path = f"{name}.weight"
        if path in self.names and path not in self.samples:
            read_parameter(self.hf, path)
            self.samples[path] = _sample(path, self.hf.get_parameter(path))
            self._add(path, self.hf.get_parameter(path))

    def finish(self) -> str:
        """Read what is left, such as layers that train, and give the fingerprint."""
        for path in self.names:
            stop.poll()
            if path not in self.samples:
                self.read(path.removesuffix(".weight"))
        self.sums = None if self.summing is None else self.summing.finish()
        return _digest(self.samples)

    def _add(self, name: str, tensor: Tensor) -> None:
        if self.summing is not None:
            self.summing.add(name, tensor)


def read_parameter(hf: nn.Module, path: str) -> None:
    """Put a parameter with its values in the place of one without."""
    parent, _, leaf = path.rpartition(".")
    module = hf.get_submodule(parent)
    promise = module.get_parameter(leaf)
    stored = stored_at(promise)
    assert stored is not None, "only promises are kept"
    module.register_parameter(leaf, nn.Parameter(stored.read(promise.dtype), promise.requires_grad))


@contextmanager
def answering_zeros(hf: HF) -> Iterator[None]:
    """Let the layers that have no weights answer zeros, so that the model's code runs to its end without them."""
    layers = [hf.get_submodule(n.rpartition(".")[0]) for n, p in hf.named_parameters() if stored_at(p)]
    for layer in layers:
        shape = linear_shape(layer)
        assert shape is not None, "only linear layers wait for their weights"
        layer.forward = partial(_zeros, shape[0])
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _zeros(out: int, x: Tensor) -> Tensor:
    return x.new_zeros(*x.shape[:-1], out)


class Fingerprint:
    """sha256 over names, shapes and sampled values of every parameter: the same base gives the same string."""

    def __init__(self) -> None:
        self.samples: dict[str, bytes] = {}

    def add(self, name: str, parameter: Tensor) -> None:
        """Look at a parameter, whose values need not stay; in any order."""
        self.samples[name] = _sample(name, parameter)

    def finish(self) -> str:
        """The string, of all that were looked at."""
        return _digest(self.samples)


def fingerprint(hf: HF) -> str:
    """That of a model that has all its values."""
    found = Fingerprint()
    for name, parameter in hf.named_parameters():
        stop.poll()
        found.add(name, parameter)
    return found.finish()


def _sample(name: str, parameter: Tensor) -> bytes:
    flat = parameter.detach().flatten()
    sample = flat[:: max(1, flat.numel() // SAMPLES)][:SAMPLES].float()
    return f"{name}{tuple(parameter.shape)}".encode() + sample.numpy().tobytes()


def _digest(samples: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name in sorted(samples):
        digest.update(samples[name])
    return digest.hexdigest()
