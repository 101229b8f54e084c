"""The most memory that training, evaluation and merging hold, by what takes it, from tensors without storage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, TypedDict

import torch
from torch import nn

from lrft.build.decide import quantizer
from lrft.build.held import Held
from lrft.build.measure import Planned, bytes_per_weight, counted, optimizer_bytes, planned
from lrft.build.measured import Measured
from lrft.build.trial import Cost, Hollow, Storage, freeze, try_layer, try_loss
from lrft.core.adapted import adapted
from lrft.core.params import ParamInfo
from lrft.data.steps import Shape
from lrft.model import varlen
from lrft.model.backend import attention_backends
from lrft.model.causal_lm import CausalLM
from lrft.model.load import DTYPES
from lrft.model.skeleton import Skeleton
from lrft.recipe.schema import Recipe
from lrft.registry.axes import ADAPTERS, INITS, OBJECTIVES, OPTIMIZERS, QUANTIZERS

CONTEXT = 500 * 2**20  # a CUDA context with torch's kernels
IMPORTED = 450 * 2**20  # a process on a CPU that has imported everything and read its rows
KERNELS = (
    64 * 2**20
)  # what loading and the kernels of a CPU leave behind: scripts/check_plan.py found 58 to 80


class Peak(TypedDict):
    """Bytes of the moment that takes most, by what holds them.

    `working` is what lives within one layer, the loss or the optimizer's step; `loss` the logits' chunk and what is
    beside it, where the loss is that moment; `runtime` the CUDA context, or on a CPU the process with its libraries.
    """

    weights: int
    adapter: int
    gradients: int
    optimizer_state: int
    activations: int
    loss: int
    working: int
    runtime: int
    total: int


class Peaks(NamedTuple):
    """What a recipe takes.

    Attributes:
        counted: parameters and bytes at rest.
        recomputed: layers that are computed again.
        moment: where in training the peak is.
    """

    counted: Measured
    train: Peak
    eval: Peak
    merge: Peak
    recomputed: int
    moment: str


def peaks_of(recipe: Recipe, model: CausalLM, device: str, shapes: Sequence[Shape] = ()) -> Peaks:
    """The peaks of a recipe.

    Args:
        model: its base model, a `Skeleton`.
        device: `cpu` or `cuda`, where it will run.
        shapes: of the micro-batches; without any, rows are one document of `train.max_length` each.

    Raises:
        RecipeError: a pattern matches nothing.
    """
    model.hf.set_attn_implementation(_backend(recipe, device))
    with planned(recipe, model) as found:
        return _Peaks(recipe, found, device).find(shapes)


class _Peaks:
    def __init__(self, recipe: Recipe, found: Planned, device: str) -> None:
        self.recipe, self.found, self.device = recipe, found, device
        hf = found.adaptation.model.hf
        assert isinstance(hf, Skeleton)
        self.hf = hf
        self.item = DTYPES[recipe.model.dtype].itemsize
        self.counted = counted(recipe, found, stored_bytes(recipe), state_bytes(recipe, found.infos))
        self.dense = "dense_base" in QUANTIZERS.declared(recipe.quantization.method).provides
        storage = Storage(self.dense, 0.0 if self.dense else decoding_room(recipe))
        anchored = _is_anchored(recipe, self.dense)
        self.constant = self._constant()
        self.kinds = [_kind(found, index) for index in range(len(hf.model.layers))]
        for index in {self.kinds.index(kind) for kind in self.kinds}:
            freeze(hf.model.layers[index], storage, anchored)
        method = recipe.adapter.method if recipe.adapter is not None else None
        self.virtual = 0 if method is None else ADAPTERS.get(method).virtual_tokens(recipe.adapter)
        self.pairs = "pairs" in OBJECTIVES.declared(recipe.objective.method).requires
        self.forward_only = "backward" not in OPTIMIZERS.declared(recipe.optimizer.method).requires

    def find(self, shapes: Sequence[Shape]) -> Peaks:
        settings = self.recipe.train
        rows = settings.batch_size * (2 if self.pairs else 1)
        full = Shape(rows, settings.max_length, (settings.max_length,) * rows)
        asked = self.recipe.model.activation_checkpointing is True
        recomputed = len(self.kinds) if asked else 0
        best = max(
            (self.train(self._widened(shape), recomputed) for shape in (set(shapes) or {full})),
            key=lambda one: one[0]["total"],
        )
        scored = self.evaluation()
        return Peaks(self.counted, best[0], scored, self.merging(scored), recomputed, best[1])

    def _widened(self, shape: Shape) -> Shape:
        """With the virtual tokens of every document."""
        count = self.virtual
        if not count:
            return shape
        most = -(-len(shape.documents) // shape.rows)
        return Shape(shape.rows, shape.length + most * count, tuple(n + count for n in shape.documents))

    def peak(self, **parts: int) -> Peak:
        runtime = CONTEXT if self.device == "cuda" else IMPORTED + KERNELS
        held = {
            "weights": self.counted["weight_bytes"],
            "adapter": self.counted["trainable_bytes"] + self.constant,
            "gradients": 0,
            "optimizer_state": 0,
            "activations": 0,
            "loss": 0,
            "working": 0,
            "runtime": runtime,
            **parts,
        }
        return {**held, "total": sum(held.values())}  # type: ignore[typeddict-item]

    def _constant(self) -> int:
        """Bytes of adapters that do not train: frozen factors, buffers."""
        seen: dict[int, int] = {}
        for _, module in adapted(self.hf):
            for tensor in (*module.adapter.parameters(), *module.adapter.buffers()):
                if not tensor.requires_grad:
                    seen[id(tensor)] = tensor.nbytes
        return sum(seen.values())

    def train(self, shape: Shape, recomputed: int) -> tuple[Peak, str]:
        """The peak of a step, and the moment it is at."""
        state = self.counted["optimizer_bytes"]
        if self.forward_only:
            part = self._forward(shape)
            return self.peak(optimizer_state=state, activations=part[0], working=part[1]), "forward pass"
        costs, loss = self._costs(shape, recomputed)
        tokens = shape.rows * shape.length
        width = self.hf.config.hidden_size * self.item
        base = tokens * (width + 2 * self.hf.config.head_dim * self.item) + self._mask(shape)
        kept = [tokens * width if i < recomputed else cost.kept for i, cost in enumerate(costs)]
        own = [cost.gradients for cost in costs]
        everything = self.counted["gradient_bytes"]
        per_layer = self.recipe.optimizer.per_layer
        held = everything if self.recipe.train.gradient_accumulation > 1 and not per_layer else 0
        whole = base + sum(kept)
        moments: list[tuple[Peak, str]] = []

        def add(moment: str, **parts: int) -> None:
            moments.append((self.peak(**{"optimizer_state": state, **parts}), moment))

        last = max(cost.forward - cost.kept for cost in costs)
        add("forward pass", gradients=held, activations=whole, working=max(0, last))
        add(
            "loss",
            gradients=held,
            activations=whole,
            loss=max(loss.forward, loss.backward - loss.gradients),
            working=loss.gradients if not held else 0,
        )
        done = loss.gradients
        for index in reversed(range(len(costs))):
            cost, before = costs[index], base + sum(kept[:index])
            room = max(cost.backward, cost.forward + tokens * width if index < recomputed else 0)
            inside = room - cost.gradients
            gradients = everything if held or per_layer else done + own[index]
            add(
                "backward pass",
                gradients=gradients,
                activations=before + cost.kept,
                working=inside - cost.kept,
            )
            done += own[index]
        if self.device == "cpu":  # on a GPU what is written is copied to the host
            add("checkpoint", gradients=0 if per_layer else everything, working=self._saving())
        add("optimizer step", gradients=everything, working=step_room(self.recipe, self.found.infos))
        return max(moments, key=lambda one: one[0]["total"])

    def _saving(self) -> int:
        """Writing a checkpoint: each of two files as a copy of its tensors, their bytes, and the file's."""
        trained = sum(info.param.nbytes for info in self.found.infos)
        return max(3 * trained, trained + 3 * self.counted["optimizer_bytes"])

    def _costs(self, shape: Shape, recomputed: int) -> tuple[list[Cost], Cost]:
        """Of every layer, and of the loss."""
        body, found = self.hf.model, dict[tuple[object, bool], Cost]()
        wanted = any(p.requires_grad for p in body.embed_tokens.parameters())
        costs = []
        for kind in self.kinds:
            layer = body.layers[self.kinds.index(kind)]
            key = (kind, wanted)
            if key not in found:
                found[key] = self.layer(layer, shape, wanted)
            costs.append(found[key])
            wanted = wanted or any(p.requires_grad for p in layer.parameters())
        return costs, try_loss(self.hf, shape.rows * shape.length, device=self.device)

    def layer(self, layer: nn.Module, shape: Shape, wanted: bool, trains: bool = True) -> Cost:
        """One layer, tried."""
        return try_layer(self.hf, layer, shape, device=self.device, wanted=wanted, trains=trains)

    def _mask(self, shape: Shape) -> int:
        """The mask of backends that are given one, as numbers for every pair of tokens of a row."""
        masked = self.hf.config._attn_implementation in ("sdpa", "eager")
        return shape.rows * shape.length**2 * self.item if masked else 0

    def _forward(self, shape: Shape) -> tuple[int, int]:
        """What a forward pass without gradients holds between its layers, and within one."""
        tokens = shape.rows * shape.length
        layers = [self.hf.model.layers[index] for index in {self.kinds.index(kind) for kind in self.kinds}]
        inside = max(self.layer(layer, shape, False, trains=False).forward for layer in layers)
        loss = try_loss(self.hf, tokens, device=self.device, trains=False).forward
        between = tokens * (self.hf.config.hidden_size + 2 * self.hf.config.head_dim) * self.item
        return between + self._mask(shape), max(inside, loss)

    def evaluation(self) -> Peak:
        """Scoring a run: batches of `eval.batch_tokens`, in rows of full length."""
        length = self.recipe.train.max_length
        rows = max(1, self.recipe.eval.batch_tokens // length)
        between, inside = self._forward(self._widened(Shape(rows, length, (length,) * rows)))
        return self.peak(activations=between, working=inside)

    def merging(self, scored: Peak) -> Peak:
        """The run's model beside a dense one, of which one layer is in float32, or rows that compare both."""
        export = DTYPES[self.recipe.export.dtype or self.recipe.model.dtype].itemsize
        dense = self.counted["base"] * max(export, self.item)
        sizes = [m.in_features * m.out_features for m in self.hf.modules() if isinstance(m, nn.Linear)]
        sizes += [m.in_features * m.out_features for _, m in _hollows(self.hf)]
        largest = max(sizes, default=0)
        within = 4 * 4 * largest  # the decoded weight, the change, the sum and its rounding
        beside = scored["activations"] + scored["working"]
        return self.peak(working=dense + max(within, beside))


def _hollows(hf: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in hf.named_modules() if isinstance(module, Hollow)]


def _kind(found: Planned, index: int) -> object:
    """What layers must have in common to cost the same."""
    prefix = f"model.layers.{index}."
    plan = found.adaptation.plan
    sites = tuple(
        (name.removeprefix(prefix), repr(entry.config))
        for name, entry in plan.items()
        if name.startswith(prefix)
    )
    hf = found.adaptation.model.hf
    layer = hf.get_submodule(prefix.rstrip("."))
    trained = tuple(name for name, p in layer.named_parameters() if p.requires_grad)
    return sites, trained, layer.self_attn.rule  # type: ignore[union-attr]


def _backend(recipe: Recipe, device: str) -> str:
    """The first attention that the recipe allows, where a GPU is taken to have the kernels for many lengths."""
    section = recipe.model
    if (
        section.attention == "auto"
        and device == "cuda"
        and not section.compile
        and section.dtype != "float32"
    ):
        return varlen.NAME
    return attention_backends(section, torch.device(device))[0]


def _is_anchored(recipe: Recipe, dense: bool) -> bool:
    """Whether adapters keep their start beside a base that still holds it."""
    if recipe.init is None or not INITS.get(recipe.init.method)(recipe.init).residual:
        return False
    wanted = getattr(recipe.init, "residual", "rewrite")
    return wanted == "anchor" or (wanted is None and not dense)


def stored_bytes(recipe: Recipe) -> float:
    """Bytes of a weight in the recipe's storage, as the format says or read off a sample."""
    cls = QUANTIZERS.get(recipe.quantization.method)
    if "dense_base" in cls.provides:
        return float(DTYPES[recipe.model.dtype].itemsize)
    bits = cls.bits(recipe.quantization)
    return _sampled(recipe)[0] if bits is None else bits / 8


def decoding_room(recipe: Recipe) -> float:
    """Bytes a weight that decoding takes beside the dense weight; formats with a kernel of their own take none."""
    cls = QUANTIZERS.get(recipe.quantization.method)
    return (
        0.0
        if cls.bits(recipe.quantization) is not None
        else _sampled(recipe.quantization.model_dump_json(), recipe)[1]
    )


_samples: dict[str, tuple[float, float]] = {}


def _sampled(recipe: Recipe) -> tuple[float, float]:
    """Stored bytes a weight, and those of decoding it, of a small matrix."""
    key = f"{recipe.quantization.model_dump_json()} {recipe.model.dtype}"
    if key not in _samples:
        side, dtype = 256, DTYPES[recipe.model.dtype]
        layer = quantizer(recipe)(torch.zeros(side, side).to(dtype), None)
        with Held() as held:
            dense = layer.weight()
            room = held.peak - dense.nbytes
        _samples[key] = bytes_per_weight(recipe), room / side**2
    return _samples[key]


def state_bytes(recipe: Recipe, infos: list[ParamInfo]) -> int:
    """Bytes of the optimizer's state, by its own formula or by a step on tensors without storage."""
    cls = OPTIMIZERS.get(recipe.optimizer.method)
    update, total = recipe.trainable.update, 0
    for info in infos:
        coarse = update != "in_place" and info.param.dtype != torch.float32
        param = nn.Parameter(torch.empty_like(info.param, dtype=torch.float32)) if coarse else info.param
        size = cls.state_bytes(replace(info, param=param) if coarse else info, recipe.optimizer)
        if size is None:
            return optimizer_bytes(recipe, infos)
        total += size + (4 * param.numel() if coarse and update == "master" else 0)
    return total


def step_room(recipe: Recipe, infos: list[ParamInfo]) -> int:
    """Bytes that the optimizer's step takes for itself: of one parameter where each is updated by itself."""
    largest = max(info.param.numel() for info in infos)
    return 3 * 4 * largest
