"""How far a merged model is from the adapter it came from, measured on held-out rows with the files on disk."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NotRequired, Protocol, TypedDict

import torch
from torch import Tensor
from torch.nn import functional as F

from lrft.core import stop
from lrft.core.batch import Batch
from lrft.export.as_trained import AsTrained
from lrft.ops.loss import Head

CHUNK = 256


class Comparable(Protocol):
    """A language model as far as it is compared."""

    @property
    def head(self) -> Head:
        """The map from hidden states to logits."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    def hidden(self, batch: Batch) -> Tensor:
        """Last hidden states (B, L, d), final norm included."""


class Difference(TypedDict):
    """How far apart two models are on the same rows."""

    positions: int
    logit_error_mean: float
    logit_error_max: float
    logit_spread: float
    kl_mean: float
    loss_adapter: float
    loss_merged: float
    loss_difference: float
    top_token_changed: float
    cosine_min: NotRequired[float]


class Nearest(TypedDict):
    """The same, as far as it is told, had the weights been rounded to nearest."""

    kl_mean: float
    loss_difference: float


class Generation(TypedDict, total=False):
    """How a merged folder generates by its own settings, see `lrft.api.opening.stopping`."""

    eos_token_id: list[int]
    pad_token_id: int | None
    agrees: bool
    new_tokens: int
    stopped: bool
    generates: bool


class Compared(TypedDict, total=False):
    """How what was written compares with its run, on which rows, and by how much it may differ."""

    tolerance: float
    rows: int
    rows_from: str | None
    positions: int
    logit_error_mean: float
    logit_error_max: float
    logit_spread: float
    kl_mean: float
    loss_adapter: float
    loss_merged: float
    loss_difference: float
    top_token_changed: float
    cosine_min: float


class Fidelity(Compared, AsTrained, total=False):
    """What fidelity.json holds: how the merge was made, then how it compares, and what a later look needs."""

    checkpoint: str
    rank: int
    added: list[str]
    features: str
    run: str
    onto: str
    dtype: str | None
    rounding: str | None
    relative_change: float | None
    calibration_rows: int
    rounded_stochastically: list[str]
    generation: Generation
    nearest: Nearest
    without_remainder: Nearest
    requantized: str
    layers_in_bits: int
    layers_exact: int
    layers_dense: list[str]
    bytes_in_bits: int
    rounded_to_nearest: list[str]
    kept_rank: int
    remainder_bytes: int
    file: str
    factored_layers: int
    parameters: int
    parameters_dense: int


@torch.no_grad()
def compare(model: Comparable, merged: Comparable, batches: Iterable[Batch]) -> Difference:
    """Logit error, KL divergence and loss difference over the supervised positions.

    Of texts to embed these are their last tokens, the loss is that of the token which `model` finds most likely there,
    and `cosine_min` is the smallest cosine between the embeddings that the two give a text.

    Args:
        model: the adapter on the base it was trained on.
        merged: what was written, read back from disk.

    Returns:
        mean and largest absolute logit error, the logits' own spread, mean KL(adapter || merged) in nats per
        token, loss of either and their difference, share of positions with another most likely token.
    """
    sums = dict.fromkeys(("error", "kl", "loss_adapter", "loss_merged", "flips", "spread"), 0.0)
    largest, positions, entries = 0.0, 0, 0
    cosines: list[float] = []
    for batch in batches:
        stop.poll()
        ours, theirs = _rows(model, batch), _rows(merged, batch)
        if batch.texts:
            cosines.append(float(F.cosine_similarity(ours.double(), theirs.double()).min()))
        for start in range(0, ours.shape[0], CHUNK):
            a = model.head.logits(ours[start : start + CHUNK]).float()
            b = merged.head.logits(theirs[start : start + CHUNK]).float()
            learnt = batch.targets[start : start + CHUNK].to(a.device)
            targets = a.argmax(-1) if batch.texts else learnt
            _add(sums, a, b, targets)
            largest = max(largest, float((a - b).abs().max()))
            positions, entries = positions + a.shape[0], entries + a.numel()
    n = max(positions, 1)
    found: Difference = {
        "positions": positions,
        "logit_error_mean": sums["error"] / max(entries, 1),
        "logit_error_max": largest,
        "logit_spread": sums["spread"] / n,
        "kl_mean": sums["kl"] / n,
        "loss_adapter": sums["loss_adapter"] / n,
        "loss_merged": sums["loss_merged"] / n,
        "loss_difference": (sums["loss_merged"] - sums["loss_adapter"]) / n,
        "top_token_changed": sums["flips"] / n,
    }
    return {**found, "cosine_min": min(cosines)} if cosines else found


def room(tokens: int, width: int, vocabulary: int) -> int:
    """Bytes that `compare` takes beside the models, of batches of so many tokens.

    The hidden states of both, and of a chunk both logits, their logarithms and three steps of the divergence.

    Args:
        width: bytes of a hidden state.
    """
    return 2 * tokens * width + 7 * 4 * min(CHUNK, tokens) * vocabulary


def _rows(model: Comparable, batch: Batch) -> Tensor:
    hidden = model.hidden(batch.to(model.device))
    return hidden.flatten(0, 1).index_select(0, batch.supervised.to(hidden.device))


def _add(sums: dict[str, float], a: Tensor, b: Tensor, targets: Tensor) -> None:
    log_a, log_b = a.log_softmax(-1), b.log_softmax(-1)
    sums["error"] += float((a - b).abs().sum())
    sums["spread"] += float(a.std(dim=-1).sum())
    sums["kl"] += float(F.kl_div(log_b, log_a, reduction="sum", log_target=True))
    sums["loss_adapter"] += float(F.nll_loss(log_a, targets, reduction="sum"))
    sums["loss_merged"] += float(F.nll_loss(log_b, targets, reduction="sum"))
    sums["flips"] += float((a.argmax(-1) != b.argmax(-1)).sum())
