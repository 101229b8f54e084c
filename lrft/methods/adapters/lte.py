"""LTE: heads of a multi-head LoRA trained apart, each on its slice of the batch, and averaged now and then."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from lrft.core.adapter import Branch, LowRank, PeftForm
from lrft.core.callback import Callback, TimedMethod
from lrft.core.context import current_batch, not_all_tokens
from lrft.core.frozen import FrozenLinear
from lrft.core.params import Site
from lrft.core.peft import LORA_NAMES, lora_keys
from lrft.core.run import Run
from lrft.methods.adapters.mhlora import MHLoRA
from lrft.ops.low_rank import branch_linear
from lrft.registry.axes import ADAPTERS
from lrft.registry.config import Field, Iterator, Problem, RecipeView, Sequence, check_every
from lrft.registry.json import Json


def lte_form_keys(config: LTE.Config, with_start: bool) -> dict[str, Json]:
    """The mean of the heads as one LoRA: its scale is alpha / (H r)."""
    return lora_keys(config.heads * config.rank, config.alpha)


def lte_form_tensors(adapter: Any, start: Any) -> dict[str, Tensor]:
    """A and B alone; what was merged is in them."""
    assert start is None, "no init takes a start off the base for this method"
    return {"A": adapter.A, "B": adapter.B}


@ADAPTERS.register
class LTE(MHLoRA):
    """LoRA-the-Explorer: every head trains on a slice of the batch of its own, and heads meet every so many steps.

        D_h = s B_h A_h,  P_h = D_h at the last merge (0 before)
        slice h, in training:  y = x (W + mean_k P_k + D_h - P_h)^T + b
        every `every` steps:   P_h <- D_h
        scored, merged:        W' = W + mean_h D_h

    with H = `heads` heads of r = `rank`, s = `alpha` / r. Heads go on from where they are after a merge (the authors'
    "reset-less" form), and the optimizer keeps its state. Slice h are the documents from ceil(h D / H) on of the D that
    a micro-batch has, so `heads` divides `train.batch_size`; of packed rows, and in the last micro-batch of an epoch,
    some slices hold a document more than others, or none. One head is LoRA.

    Shapes: A (H r, in) and B (out, H r) as in `mhlora`, so W' = W at step 0; the buffers A0, B0 of the P_h alike.
    Trains: H r (in + out) numbers per site; as many are kept, and saved, of the last merge.
    Source: Huh et al., "Training Neural Networks from Scratch with Parallel Low-Rank Adapters", 2024, arXiv 2402.16828,
    and the authors' code (minyoungg/LTE), whose defaults of r and alpha these are; H and T are set for each run there,
    H = 32 in the paper.
    Departures: merges are sums of the increments mean_h (D_h - P_h), so W + mean_h P_h is what they add up to; it is
    kept as factors beside W and never rounded into it, so that quantized bases merge exactly too. Between two merges
    the authors score W + mean_h P_h, here the heads of that step count, as merging then would have it. The loss is the
    mean of the whole step, so a head's gradient is about 1 / H of that of its own slice alone.
    """

    aliases = {
        "lora_the_explorer": "adapter: {method: lte, every: 10}",
    }
    provides = {"adapters", "mergeable", "linear_delta"}
    requires = {"eager"}
    by_position = True
    peft = PeftForm(lte_form_keys, lte_form_tensors, names=dict(LORA_NAMES))

    config: Config

    class Config(MHLoRA.Config):
        every: int = Field(10, gt=0, description="optimizer steps between two merges")

        def check_length(self, total_steps: int, ranks: Sequence[int] = ()) -> None:
            """Refuse a run in which heads never meet."""
            if self.heads > 1:
                check_every(self.every, total_steps, "adapter.every")

        def clashes(self, recipe: RecipeView) -> Iterator[Problem]:
            """Micro-batches that have no slice for every head."""
            rows = recipe["train.batch_size"]
            if isinstance(rows, int) and rows % self.heads:
                near = max(1, round(rows / self.heads)) * self.heads
                message = f"{self.heads} heads share the {rows} rows of a micro-batch; write {near}"
                yield Problem("train.batch_size", message)

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(config, site)
        self.register_buffer("A0", self.A.detach().clone())
        self.register_buffer("B0", self.B.detach().clone())

    @torch.no_grad()
    def reset(self) -> None:
        super().reset()
        self.meet()

    @torch.no_grad()
    def meet(self) -> None:
        """Merge: every head's change so far becomes part of what all slices see."""
        self.get_buffer("A0").copy_(self.A)
        self.get_buffer("B0").copy_(self.B)

    @classmethod
    def timed(cls, config: LTE.Config) -> Callback:
        return Merges(config)

    def branch(self) -> Branch:
        """The mean of the heads."""
        return Branch(self.A, self.B, self.scaling / self.config.heads)

    def forward(self, x: Tensor, base: FrozenLinear) -> Tensor:
        sizes = self.slices(x)
        return LowRank.forward(self, x, base) if sizes is None else base(x) + self.apart(x, sizes)

    def apart(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """What is added to the base's output of each slice, (..., in) -> (..., out); `sizes` are tokens of each."""
        dtype = self.compute_dtype or x.dtype
        A0, B0 = self.get_buffer("A0"), self.get_buffer("B0")
        flat = x.reshape(-1, x.shape[-1]).to(dtype)
        merged = branch_linear(flat, None, Branch(A0, B0, self.scaling / self.config.heads))
        heads = zip(self.by_head(self.A, self.B), self.by_head(A0, B0), strict=True)
        moved = [
            branch_linear(part, None, since(now, then, self.scaling))
            for part, (now, then) in zip(flat.split(list(sizes)), heads, strict=True)
        ]
        return (merged + torch.cat(moved)).view(*x.shape[:-1], -1).to(x.dtype)

    def slices(self, x: Tensor) -> list[int] | None:
        """Tokens of x (..., in) of every head's slice; None where nothing is trained on them.

        Raises:
            RecipeError: the layer does not see all tokens of the batch, so that nobody knows whose they are.
        """
        batch, heads = current_batch(), self.config.heads
        if batch is None or not self.training:
            return None
        rows, length = batch.input_ids.shape
        if x.shape[:-1].numel() != rows * length:
            raise not_all_tokens(self.site.name)
        starts = [row * length + start for row, start, _ in batch.documents]
        firsts = [-(-head * len(starts) // heads) for head in range(heads)]
        starts.append(rows * length)
        return [end - start for start, end in pairwise([0, *(starts[k] for k in firsts[1:]), rows * length])]


class Merges(TimedMethod):
    """Lets the heads of every site meet; when, follows from the step alone."""

    config: LTE.Config

    def after_step(self, run: Run) -> None:
        if run.step % self.config.every:
            return
        for _, site in run.adapted():
            assert isinstance(site.adapter, LTE)
            site.adapter.meet()


def since(now: tuple[Tensor, Tensor], then: tuple[Tensor, Tensor], scale: float) -> Branch:
    """B A - B0 A0, as (B - B0) A + B0 (A - A0): formed in float32, so that a small change survives bfloat16."""
    (A, B), (A0, B0) = now, then
    return Branch(torch.cat([A, A - A0]), torch.cat([B - B0, B0], dim=1), scale)
