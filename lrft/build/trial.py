"""What the layers of a model keep and take: each different one is run on tensors without storage, and counted.

So no formula of a method's activations is written twice: the site's own code says what it keeps.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from lrft.build.held import Held
from lrft.build.native import has_compiler
from lrft.core.adapted import Adapted
from lrft.core.block import AdaptedBlock
from lrft.core.features import passing
from lrft.core.frozen import FrozenLinear
from lrft.core.less import Less
from lrft.data.steps import Shape
from lrft.model.experts import group
from lrft.ops.dropout import meta_as
from lrft.ops.loss import CHUNK, Head, linear_cross_entropy
from lrft.ops.native import Shapes, using

if TYPE_CHECKING:
    from lrft.model.skeleton import Skeleton


class Cost(NamedTuple):
    """Bytes of one layer, or of the loss.

    Attributes:
        kept: alive when its forward pass is over, its output among them.
        forward: the most that were alive in the forward pass, what is kept included.
        backward: the most in the backward pass, what is kept and the gradients included.
        gradients: of its own parameters.
    """

    kept: int
    forward: int
    backward: int = 0
    gradients: int = 0


class Tried(NamedTuple):
    """The layers at one shape.

    Attributes:
        rows: bytes of the hidden states between two layers.
        between: bytes that no layer holds.
        trains: they were gone through backwards too.
    """

    costs: list[Cost]
    loss: Cost
    rows: int
    between: int
    trains: bool


class Storage(NamedTuple):
    """How a base is stored, as far as bytes go.

    Attributes:
        kept: whether the dense weight is there anyway; else it is decoded at every use.
        room: bytes a weight that decoding takes beside the dense weight.
    """

    kept: bool
    room: float = 0.0


class Hollow(FrozenLinear):
    """A frozen map without storage, which takes what decoding it would take."""

    def __init__(self, layer: nn.Linear, storage: Storage) -> None:
        self.storage = storage
        bias = None if layer.bias is None or layer.bias.requires_grad else layer.bias
        super().__init__(layer.weight, bias)

    def encode(self, weight: Tensor) -> None:
        self.register_buffer("dense", weight, persistent=False)

    def weight(self) -> Tensor:
        dense = self.get_buffer("dense")
        if self.storage.kept:
            return dense
        room = torch.empty(round(self.storage.room * dense.numel()), dtype=torch.uint8, device="meta")
        decoded = torch.empty_like(dense)
        del room
        return decoded


class HollowDense(Hollow):
    """One whose weight is there anyway, and may stand in a larger tensor."""

    movable = True

    def move_to(self, place: Tensor) -> None:
        self.encode(place)


def freeze(layer: nn.Module, storage: Storage, anchored: bool) -> None:
    """Give a layer's linear maps that do not train the form that training gives them, adapted or not.

    Args:
        anchored: adapters keep their start beside a base that still holds it.
    """
    for name, module in list(layer.named_modules()):
        if isinstance(module, nn.Linear) and not module.weight.requires_grad:
            base = (HollowDense if storage.kept else Hollow)(module, storage)
            if isinstance(module.bias, nn.Parameter) and module.bias.requires_grad:
                base.train_bias(module.bias)
            parent, _, leaf = name.rpartition(".")
            setattr(layer.get_submodule(parent), leaf, base)
    for module in list(layer.modules()):
        if anchored and isinstance(module, Adapted) and not isinstance(module, AdaptedBlock):
            module.base = Less(module.base, copy.deepcopy(module.adapter), anchored=True)  # type: ignore[arg-type]
    with Held():  # which finds shapes without torch's compiler
        group(layer)


def try_layer(
    hf: Skeleton, layer: nn.Module, shape: Shape, *, device: str, wanted: bool, trains: bool = True
) -> Cost:
    """Run a layer whose bases are `Hollow`.

    Args:
        shape: of the rows.
        device: what it stands for.
        wanted: a gradient is asked for by what is before the layer.
        trains: go back too; else nothing is kept.
    """
    config = hf.config
    item = hf.get_input_embeddings().weight.dtype
    empty = partial(torch.empty, dtype=item, device="meta")
    x = empty(shape.rows, shape.length, config.hidden_size, requires_grad=wanted and trains)
    angles = (
        empty(shape.rows, shape.length, config.angles),
        empty(shape.rows, shape.length, config.angles),
    )
    documents = _places(shape)
    layer.train(trains)
    adapters = [module.adapter for module in layer.modules() if isinstance(module, Adapted)]
    features = (
        adapters[0].row_features(adapters[0].config) if adapters else ()
    )  # all of them, where some may be
    with passing([features] * shape.rows) if features else nullcontext():
        return _try(lambda: layer(x, angles, documents), layer, trains=trains, device=device)


def try_loss(hf: Skeleton, tokens: int, *, device: str, trains: bool = True, texts: int = 0) -> Cost:
    """Run the last norm, the head and the loss of tokens that are all learnt.

    Logits are alive a chunk at a time, so beyond a few chunks every token adds the same.

    Args:
        texts: which the tokens are of, where these are embedded and no token is learnt.
    """
    if texts:
        return _try_embedding(hf, tokens, texts, device=device, trains=trains)
    few = 2 * CHUNK
    if tokens <= 2 * few:
        return _try_loss(hf, tokens, device=device, trains=trains)
    two, three = (_try_loss(hf, count, device=device, trains=trains) for count in (few, few + CHUNK))
    chunks = (tokens - few) / CHUNK
    return Cost(*(round(a + (b - a) * chunks) for a, b in zip(two, three, strict=True)))


def _try_loss(hf: Skeleton, tokens: int, *, device: str, trains: bool) -> Cost:
    embedding = hf.get_input_embeddings().weight
    x = torch.empty(tokens, hf.config.hidden_size, dtype=embedding.dtype, device="meta", requires_grad=trains)
    targets = torch.empty(tokens, dtype=torch.int64, device="meta")
    head = Head(hf.lm_head, hf.softcap)
    held: list[Tensor] = []

    def loss() -> Tensor:
        held[:] = [hf.model.norm(x)]  # which the objective holds until it returns
        held.append(held[0].index_select(0, targets))
        return linear_cross_entropy(held[1], head, targets)

    whole = nn.ModuleList([hf.model.norm, hf.lm_head])
    return _try(loss, whole, trains=trains, device=device, after=held.clear)


def _try_embedding(hf: Skeleton, tokens: int, texts: int, *, device: str, trains: bool) -> Cost:
    dtype = hf.get_input_embeddings().weight.dtype
    x = torch.empty(tokens, hf.config.hidden_size, dtype=dtype, device="meta", requires_grad=trains)
    last = torch.empty(texts, dtype=torch.int64, device="meta")
    held: list[Tensor] = []

    def loss() -> Tensor:
        held[:] = [hf.model.norm(x)]
        held.append(normalize(held[0].index_select(0, last).float(), dim=-1))
        return (held[1] @ held[1].T).logsumexp(1).sum()

    return _try(loss, nn.ModuleList([hf.model.norm]), trains=trains, device=device, after=held.clear)


def _try(
    forward: Callable[[], Tensor],
    module: nn.Module,
    *,
    trains: bool,
    device: str,
    after: Callable[[], None] = lambda: None,
) -> Cost:
    kernels = Shapes() if trains and device == "cpu" and has_compiler() else None
    with meta_as(device), using(kernels), Held() as held, nullcontext() if trains else torch.no_grad():
        y = forward()
        after()
        output = y.numel() * y.element_size()
        kept, most = held.now, held.peak
        if not trains or not y.requires_grad:
            return Cost(output, most)
        seed = torch.empty_like(y)
        held.mark()
        _pull(y, seed)
        # The output is held here by name, where training has let it go.
        peak = held.peak - output
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    size = sum(grad.numel() * grad.element_size() for grad in grads)
    for parameter in module.parameters():
        parameter.grad = None
    return Cost(kept, most, peak, size)


def _pull(y: Tensor, seed: Tensor) -> None:
    """`torch.autograd.backward(y, seed)` without its look at symbolic shapes, whose import takes longer than a plan."""
    engine: Any = torch.autograd.Variable._execution_engine
    engine.run_backward((y,), (seed,), False, False, (), allow_unreachable=True, accumulate_grad=True)


def _places(shape: Shape) -> tuple[tuple[int, int, int], ...]:
    """(row, start, end) of documents of these lengths, put into the rows one after another."""
    found, row, start = [], 0, 0
    for length in shape.documents:
        if start + length > shape.length:
            row, start = row + 1, 0
        found.append((row, start, start + length))
        start += length
    return tuple(found)
