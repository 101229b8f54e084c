"""The most memory that training, evaluation and merging hold, by what takes it, from tensors without storage."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import cast

import torch
from torch import nn

from lrft.build.at_rest import (
    allocator_room,
    constant_bytes,
    decoding_room,
    dense_beside,
    keeps_dense,
    keeps_start,
    runtime_bytes,
    scoring_room,
    state_bytes,
    stored_bytes,
    widening_room,
    widths_of,
)
from lrft.build.measure import Planned, counted, planned
from lrft.build.measured import Peak, Peaks
from lrft.build.moments import Moments
from lrft.build.recomputing import SHARE
from lrft.build.resident import state_held, weights_held
from lrft.build.rounding_peaks import rounded_peaks
from lrft.build.steps import documents_of_a_row, full_shape
from lrft.build.trial import Cost, Hollow, Storage, Tried, freeze, try_layer, try_loss
from lrft.data.steps import Shape
from lrft.export.fidelity import room
from lrft.model import varlen
from lrft.model.backend import attention_backends
from lrft.model.causal_lm import CausalLM
from lrft.model.load import DTYPES
from lrft.model.skeleton import Skeleton
from lrft.recipe.embedding_clashes import embeds
from lrft.recipe.schema import Recipe
from lrft.registry.axes import ADAPTERS, OPTIMIZERS


def peaks_of(
    recipe: Recipe, model: CausalLM, device: str, shapes: Sequence[Shape] = (), limit: int | None = None
) -> Peaks:
    """The peaks of a recipe.

    Args:
        model: its base model, around a `Skeleton`; used up.
        device: `cpu` or `cuda`, where it will run.
        shapes: of the micro-batches; without any, rows are one document of `train.max_length` each.
        limit: bytes of the device, for as many layers computed again as they ask for where that is left to them.

    Raises:
        RecipeError: a pattern matches nothing.
    """
    model.hf.set_attn_implementation(backend_of(recipe, device))
    with planned(recipe, model) as found:
        return PeaksOf(recipe, found, device).find(shapes, limit)


class PeaksOf:
    """The peaks of one recipe, every different layer of it tried once for each shape."""

    def __init__(self, recipe: Recipe, found: Planned, device: str) -> None:
        self.found, self.device = found, device
        self.embeds = embeds(recipe.objective.method)
        hf: nn.Module = found.adaptation.model.hf
        assert isinstance(hf, Skeleton)
        self.hf, self.item = hf, DTYPES[recipe.model.dtype].itemsize
        self.constant = constant_bytes(hf)
        self.tries: dict[tuple[Shape, bool], Tried] = {}
        self._count(recipe)
        self.kinds = [_kind(found, index) for index in range(len(hf.model.layers))]
        storage = Storage(keeps_dense(recipe), decoding_room(recipe))
        for layer in self._different():
            freeze(layer, storage, keeps_start(recipe))
        self.widths = widths_of(hf)

    def of(self, recipe: Recipe) -> PeaksOf:
        """Those of another recipe on the same modules."""
        other = copy(self)
        other._count(recipe)
        return other

    def repeats(self) -> bool:
        """Whether a second try takes what the first did, so that no module keeps anything of it."""
        shape = self._widened(full_shape(self.recipe, documents_of_a_row(self.recipe)))
        first = self._try(shape)
        return first == self._tried(shape, first.trains)

    def _count(self, recipe: Recipe) -> None:
        """What is held at rest."""
        self.recipe = recipe
        state = state_bytes(recipe, self.found.infos)
        self.counted = counted(recipe, self.found, stored_bytes(recipe), state)
        self.moments = Moments(recipe, self.found.infos, self.counted, state, self.device)
        layers, head = len(self.hf.model.layers), self.hf.lm_head.weight
        ends = head.nbytes + (0 if self.hf.model.embed_tokens.weight is head else head.nbytes)
        self.held = {
            "weights": sum(weights_held(recipe, self.counted, layers, head.nbytes, ends)),
            "optimizer_state": state_held(recipe, state, layers),
        }
        if recipe.privacy is not None:  # the first step compares what does not train with a copy
            self.held["adapter"] = self.counted["trainable_bytes"] + 2 * self.constant

    def find(self, shapes: Sequence[Shape], limit: int | None) -> Peaks:
        """All three, training at the largest of the shapes."""
        train, moment, count = self.training(shapes, limit)
        scored = self._evaluation()
        merge = self._merging(scored)
        rounded = rounded_peaks(self.recipe, self.hf, self.counted["base"], merge, scored)
        return Peaks(self.counted, train, scored, merge, rounded, count, moment, self.hf.mixed)

    def training(self, shapes: Sequence[Shape], limit: int | None) -> tuple[Peak, str, int]:
        """That of a step at the largest of the shapes, its moment, and how many layers are computed again."""
        full = full_shape(self.recipe, documents_of_a_row(self.recipe))
        different = {self._widened(shape) for shape in (set(shapes) or {full})}
        tried = [self._try(shape) for shape in different]
        for count in self._counts(limit):
            train, moment = max((self._train(one, count) for one in tried), key=lambda one: one[0]["total"])
            if limit is None or train["total"] <= SHARE * limit:
                break
        return train, moment, count

    def _counts(self, limit: int | None) -> Sequence[int]:
        """How many layers may be computed again, the fewest first."""
        asked = self.recipe.model.activation_checkpointing
        if asked == "auto" and limit is not None:
            return range(len(self.kinds))  # the last layer would free nothing before it is needed
        return [len(self.kinds) if asked is True else 0]

    def _widened(self, shape: Shape) -> Shape:
        """With the virtual tokens of every document."""
        adapter = self.recipe.adapter
        count = 0 if adapter is None else ADAPTERS.get(adapter.method).virtual_tokens(adapter)
        most = -(-len(shape.documents) // shape.rows)
        return Shape(shape.rows, shape.length + most * count, tuple(n + count for n in shape.documents))

    def _different(self) -> list[nn.Module]:
        return [
            self.hf.model.layers[index] for index in sorted({self.kinds.index(kind) for kind in self.kinds})
        ]

    def _peak(self, **parts: int) -> Peak:
        held = {
            **dict.fromkeys(Peak.__annotations__, 0),
            "weights": self.counted["weight_bytes"],
            "adapter": self.counted["trainable_bytes"] + self.constant,
            "runtime": runtime_bytes(self.device, self.item),
            **parts,
        }
        return cast(Peak, {**held, "total": sum(held.values())})

    def _try(self, shape: Shape) -> Tried:
        """Every layer of a training step, and the loss; of an optimizer that asks for no gradients none goes back."""
        trains = "backward" in OPTIMIZERS.declared(self.recipe.optimizer.method).requires
        if (shape, trains) not in self.tries:
            self.tries[shape, trains] = self._tried(shape, trains)
        return self.tries[shape, trains]

    def _tried(self, shape: Shape, trains: bool) -> Tried:
        body, found = self.hf.model, dict[tuple[object, bool], Cost]()
        wanted = any(p.requires_grad for p in body.embed_tokens.parameters())
        costs = []
        for kind in self.kinds:
            layer = body.layers[self.kinds.index(kind)]
            if (kind, wanted) not in found:
                found[kind, wanted] = try_layer(
                    self.hf, layer, shape, device=self.device, wanted=wanted, trains=trains
                )
            costs.append(found[kind, wanted])
            wanted = wanted or any(p.requires_grad for p in layer.parameters())
        tokens = shape.rows * shape.length
        texts = len(shape.documents) if self.embeds else 0
        loss = try_loss(self.hf, tokens, device=self.device, trains=trains, texts=texts)
        return Tried(
            costs, loss, tokens * self.hf.config.hidden_size * self.item, self._between(shape), trains
        )

    def _between(self, shape: Shape) -> int:
        """Bytes that no layer holds: the embedded rows, the angles of rotation, the mask of pairs."""
        config = self.hf.config
        rows: int = shape.rows * shape.length * (config.hidden_size + 2 * config.angles) * self.item
        masked = config._attn_implementation in ("sdpa", "eager")
        return rows + (shape.rows * shape.length**2 * self.item if masked else 0)

    def _train(self, tried: Tried, recomputed: int) -> tuple[Peak, str]:
        """The peak of a step, and the moment it is at."""
        tokens: int = tried.rows // self.item // self.hf.config.hidden_size
        room = widening_room(self.recipe, self.widths, self.device, tokens)
        between = allocator_room(self.recipe, self.widths, self.device, tokens, recomputed)
        held = {**self.held, "allocator": between}
        moments = (
            (self._peak(**{**held, **parts, "working": parts.get("working", 0) + room}), name)
            for name, parts in self.moments.of(tried, recomputed)
        )
        return max(moments, key=lambda one: one[0]["total"])

    def _evaluation(self) -> Peak:
        """Scoring a run: batches of `eval.batch_tokens`, in rows of full length."""
        length = self.recipe.train.max_length
        rows = max(1, self.recipe.eval.batch_tokens // length)
        shape = self._widened(Shape(rows, length, (length,) * rows))
        layers = [
            try_layer(self.hf, layer, shape, device=self.device, wanted=False, trains=False).forward
            for layer in self._different()
        ]
        tokens, texts = shape.rows * shape.length, rows if self.embeds else 0
        loss = try_loss(self.hf, tokens, device=self.device, trains=False, texts=texts).forward
        held = {"runtime": runtime_bytes(self.device, self.item, trains=False)}
        held["allocator"] = scoring_room(self.recipe, self.widths, self.device, tokens)
        return self._peak(activations=self._between(shape), working=max(loss, *layers), **held)

    def _merging(self, scored: Peak) -> Peak:
        """The run's model and a layer in float32 or rows to compare; beside it a dense embedding and head."""
        export = DTYPES[self.recipe.export.dtype or self.recipe.model.dtype].itemsize
        layers = [m for m in self.hf.modules() if isinstance(m, Hollow | nn.Linear)]
        changed = [m for m in layers if isinstance(m, Hollow) or m.weight.requires_grad]
        # The decoded weight, the change, the sum and its rounding.
        within = 4 * 4 * max((m.in_features * m.out_features for m in changed), default=0)
        beside = dense_beside(self.recipe.model, self.hf, self.counted["base"])
        tokens, config = max(self.recipe.eval.batch_tokens, self.recipe.train.max_length), self.hf.config
        compared = room(tokens, config.hidden_size * self.item, config.vocab_size)
        scoring = scored["activations"] + scored["working"] + scored["allocator"]
        most = max(within, compared, scoring)
        return self._peak(working=beside * max(export, self.item) + most, runtime=scored["runtime"])


def _kind(found: Planned, index: int) -> object:
    """What layers must have in common to cost the same."""
    prefix, plan = f"model.layers.{index}.", found.adaptation.plan
    own = {name.removeprefix(prefix): entry for name, entry in plan.items() if name.startswith(prefix)}
    layer = found.adaptation.model.hf.get_submodule(prefix.rstrip("."))
    held = tuple((name, parameter.requires_grad) for name, parameter in layer.named_parameters())
    rule = layer.get_submodule("self_attn")
    window = getattr(getattr(rule, "base", rule), "rule", None)
    return tuple((name, repr(entry.config)) for name, entry in own.items()), held, window


def backend_of(recipe: Recipe, device: str) -> str:
    """The first attention that the recipe allows, where a GPU is taken to have the kernels for many lengths."""
    section = recipe.model
    plain = section.attention == "auto" and not section.compile
    if plain and device == "cuda" and section.dtype != "float32":
        return varlen.NAME
    return attention_backends(section, torch.device(device))[0]
