"""`CausalLM`: a transformers model as the loop, the objectives and the evaluation see it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from lrft.core.adapted import adapted
from lrft.core.adapter import Shared
from lrft.core.batch import Batch
from lrft.core.block import AdaptedBlock
from lrft.core.features import Features, passing
from lrft.core.units import Pruned
from lrft.core.virtual import note, widen
from lrft.model import varlen
from lrft.model.flattened import Told, flatten
from lrft.model.hf import HF, head_of
from lrft.model.new_rows import NewRows
from lrft.model.tied_rows import tied_rows
from lrft.ops.loss import Head

if TYPE_CHECKING:
    from lrft.model.packed import Packed
    from lrft.model.packing import Packing
    from lrft.model.stored import Unread
    from lrft.model.weight_sums import WeightSums

SCORE = "score"  # what transformers calls the head of a sequence classifier


class HiddenStates(Protocol):
    """What the body of a model gives."""

    last_hidden_state: Tensor


class CausalLM(nn.Module):
    """Wraps a transformers causal language model and separates its body from its head.

    Attributes:
        hf: the transformers model.
        transposed: paths of layers whose weight transformers stores as (in, out) (GPT-2's Conv1D).
        direct: paths of linear layers that nothing can stand in for (`lrft.model.direct`).
        fingerprint: identity of the dense base weights, by some values of each.
        weight_sums: the same by all values, where that was asked for.
        packing: how the checkpoint stores its layers in few bits, or None.
        packed: those layers by path, which are taken over as they are (`lrft.model.packed`).
        unread: the linear layers whose weights are still in their files, or None.
        shared: what the adapters of all sites share, or None.
        softcap, scale: of the head, as `lrft.model.head` found them.
        new_rows: what trains for tokens that the model did not have (`lrft.model.new_tokens`), or None.
        pruned: heads and channels that are hidden, cut off or put back (`lrft.model.units`), or None.
        features: those of rows that the adapters go by (`lrft.core.features`).
        virtual: virtual tokens before every document while the adapters are on (`lrft.core.virtual`).
        labels: of the score head, `hf.score`; empty where the model has none (`lrft.model.score_head`).
        batching: how prompts may be put together for generation (`lrft.model.batching`), once it was asked.
        static_cache: whether generation may begin with a cache of its final size, once it was asked.
    """

    def __init__(self, hf: HF) -> None:
        super().__init__()
        self.hf = hf
        self.transposed: set[str] = set()
        self.direct: frozenset[str] = frozenset()
        self.fingerprint = ""
        self.weight_sums: WeightSums | None = None
        self.packing: Packing | None = None
        self.packed: dict[str, Packed] = {}
        self.unread: Unread | None = None
        self.shared: Shared | None = None
        self.softcap: float | None = None
        self.scale = 1.0
        self.new_rows: NewRows | None = None
        self.pruned: Pruned | None = None
        self.features: Features = ()
        self.virtual = 0
        self.labels: tuple[str, ...] = ()
        self.batching: str | None = None
        self.static_cache: bool | None = None
        self._compiled: Callable[..., HiddenStates] | None = None

    @property
    def head(self) -> Head:
        """The map from hidden states to logits, as this architecture computes it."""
        head = head_of(self.hf)
        if (rows := self.new_rows_now) is not None:
            return Head(head, self.softcap, self.scale, rows.head, rows.first)
        return Head(head, self.softcap, self.scale, *(tied_rows(self.hf) or ()))

    @property
    def body(self) -> nn.Module:
        """Everything before the head."""
        body: nn.Module = self.hf.base_model
        return body if body is not self.hf else getattr(self.hf, "model", body)

    @cached_property
    def takes_positions(self) -> bool:
        """Whether the body is told where a document begins; others count from the beginning of the row."""
        return takes(self.body, "position_ids")

    def set_attention(self, backend: str) -> bool:
        """Use an attention backend; False where the architecture does not take it."""
        if backend == varlen.NAME:
            varlen.register()
        try:
            self.hf.set_attn_implementation(backend)
        except (ValueError, ImportError):
            return False
        return self.attention == backend

    @property
    def attention(self) -> str:
        """Name of the attention backend in use."""
        return str(self.hf.config._attn_implementation)

    @property
    def flattens(self) -> bool:
        """Whether the backend is a GPU's kernel that takes all rows as one, with the bounds of the documents."""
        return self.attention == varlen.NAME or self.attention.startswith("flash")

    @property
    def device(self) -> torch.device:
        """Where the model's parameters live."""
        return next(self.hf.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the activations."""
        return self.hf.get_input_embeddings().weight.dtype

    def compile(self) -> None:
        """Run the body through torch.compile; batches must keep one shape, as packed ones do."""
        self._compiled = torch.compile(self.body, dynamic=False)

    def give_virtual_tokens(self, count: int) -> None:
        """Let so many virtual tokens go before every document; the input embedding is then told of its ids."""
        if count and not self.virtual:
            self.hf.get_input_embeddings().register_forward_pre_hook(_meet_virtual_ids)
        self.virtual = count

    @property
    def virtual_now(self) -> int:
        """Virtual tokens of the model as it is switched: none while its adapters are off."""
        first = next(adapted(self.hf), None) if self.virtual else None
        return self.virtual if first is not None and first[1].enabled else 0

    def give_new_rows(self, rows: NewRows) -> None:
        """Let rows of their own stand for new tokens: wherever the two maps of the vocabulary are called."""
        head = head_of(self.hf)

        def embed(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            now = self.new_rows_now
            return output if now is None else now.embed(inputs[0], output)

        def score(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            now = self.new_rows_now
            return output if now is None else now.score(inputs[0], output, getattr(module, "bias", None))

        self.hf.get_input_embeddings().register_forward_hook(embed)
        head.register_forward_hook(score)
        self.new_rows = rows

    @property
    def new_rows_now(self) -> NewRows | None:
        """The rows of new tokens; None while the adapters are off, when the matrices say what they began as."""
        if self.new_rows is None:
            return None
        first = next(adapted(self.hf), None)
        return self.new_rows if first is None or first[1].enabled else None

    def hidden(self, batch: Batch) -> Tensor:
        """Last hidden states (B, L, d), final norm included; documents of a row do not see each other."""
        if count := self.virtual_now:
            wide = widen(batch, count)
            return wide.narrow(self._hidden(wide.batch))
        return self._hidden(batch)

    def _hidden(self, batch: Batch) -> Tensor:
        """The stock backends find the documents by the restarts in `position_ids`."""
        ids, positions = batch.input_ids, batch.position_ids
        extra: Told = {}
        if self.attention == "segmented":
            extra["documents"] = batch.documents
        elif self.flattens:
            ids, positions, extra = flatten(batch)
        body = self._compiled if self._compiled is not None and torch.is_grad_enabled() else self.body
        if self.takes_positions:
            extra["position_ids"] = positions
        with passing(batch):
            output = body(input_ids=ids, use_cache=False, **extra)
        return output.last_hidden_state.view(*batch.input_ids.shape, -1)

    def scores(self, batch: Batch) -> Tensor:
        """Scores (documents, labels) in float32 of the last token of every document, which `supervised` names."""
        last = batch.supervised_rows(self.hidden(batch))
        scores: Tensor = self.hf.get_submodule(SCORE)(last.float())
        return scores

    def embeddings(self, batch: Batch) -> Tensor:
        """Unit vectors (documents, d) in float32: the state of the last token of every document."""
        last = self.hidden(batch).flatten(0, 1).index_select(0, batch.supervised)
        return normalize(last.float(), dim=-1)

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, L, V) of every position. For comparisons on a few rows; training never forms them."""
        return self.head.logits(self.hidden(batch))


def _meet_virtual_ids(embedding: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Note the ids of a pass; an embedding that no adapter is around has no row for negative ones, and gets 0."""
    ids, *rest = inputs
    note(ids)
    return inputs if isinstance(embedding, AdaptedBlock) else (ids.clamp_min(0), *rest)


def takes(module: nn.Module, name: str) -> bool:
    """Whether the forward pass of `module` has an argument called `name`."""
    return name in inspect.signature(module.forward).parameters
