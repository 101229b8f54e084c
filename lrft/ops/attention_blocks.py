"""Causal attention over one long document, a block of its queries at a time, in memory that grows with its length.

Queries [i, j) meet the keys [max(0, i - window + 1), j): nothing above the diagonal is computed but inside the
diagonal block. They meet all their keys at once, so a block holds whole rows of the softmax; the backward pass forms
them again from the scores, to the same bits, and nothing but queries, keys and values is kept in between.

Shapes: H query heads, K key/value heads, G = H / K, n tokens of the document, D and D_v head dimensions; a block of b
queries and w keys has scores (K, G b, w), the heads of a group folded into rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lrft.ops.products import working

LONG = 512  # tokens of a document; for up to so many the probabilities are cheaper to keep than to form again
BLOCK = 128  # queries of a long document
SMALL = 64  # queries of a short one, of which what a block holds is kept; up to twice as many are one block


@dataclass(frozen=True)
class Rule:
    """How the scores of an attention become probabilities.

    Attributes:
        scale: of q k^T.
        window: keys that a query sees, itself the last; 0 for all before it.
        softcap: c of c * tanh(score / c), or None.
        dropout: share of the probabilities that are dropped.
        sinks: (H,) scores of a key that has no value and takes its share of the softmax, or None.
    """

    scale: float
    window: int = 0
    softcap: float | None = None
    dropout: float = 0.0
    sinks: Tensor | None = None


@dataclass(frozen=True)
class Block:
    """Queries [start, end) of a document and the keys [first, end) that they see at most."""

    start: int
    end: int
    first: int


class Room:
    """Tensors that every block writes anew, allocated once for the widest."""

    def __init__(self, like: Tensor, size: int) -> None:
        self.like = like
        self.size = size
        self.held: dict[str, Tensor] = {}

    def __call__(self, name: str, shape: tuple[int, int, int]) -> Tensor:
        """The tensor called `name`, in this shape and with whatever it held before."""
        if name not in self.held:
            self.held[name] = self.like.new_empty(self.size)
        return self.held[name][: math.prod(shape)].view(shape)


def blocks_of(n: int, window: int) -> Iterator[Block]:
    """The blocks of a document of n tokens, first to last."""
    size = BLOCK if n > LONG else SMALL if n > 2 * SMALL else max(n, 1)
    for start in range(0, n, size):
        first = max(0, start - window + 1) if window > 0 else 0
        yield Block(start, min(start + size, n), first)


def met_pairs(n: int, window: int = 0) -> int:
    """Pairs of a query and a key that the blocks of a document of n tokens hold."""
    return sum((block.end - block.start) * (block.end - block.first) for block in blocks_of(n, window))


def widest(n: int, window: int) -> int:
    """Most keys that a block of a document of n tokens meets."""
    return n if window <= 0 else min(n, window + BLOCK - 1)


def hide_pairs(scores: Tensor, block: Block, window: int) -> None:
    """Set the (H, b, w) scores of pairs that a query may not see to -inf; all of them are near the two edges."""
    _, rows, columns = scores.shape
    square = torch.ones(rows, rows, dtype=torch.bool, device=scores.device)
    scores[..., columns - rows :].masked_fill_(square.triu(1), -math.inf)
    # Row r sees no key before start + r - window + 1; its column is less than r + shift.
    shift = block.start - window - block.first
    if window > 0 and rows + shift > 0:
        scores[..., : min(rows, columns)].masked_fill_(square[:, :columns].tril(shift), -math.inf)


def softmax(scores: Tensor, sinks: Tensor | None, out: Tensor | None = None) -> Tensor:
    """Probabilities of (K, G b, w) scores; with sinks (H,) each row leaves its sink's share out.

    Args:
        out: where they go, which may be `scores` itself.
    """
    if sinks is None:
        return torch.softmax(scores, dim=-1, out=out)
    rows = scores.shape[1] * scores.shape[0] // sinks.numel()
    sink = sinks.detach().to(scores.dtype).repeat_interleave(rows).view(*scores.shape[:2], 1)
    top = torch.maximum(scores.amax(-1, keepdim=True), sink)
    shares = torch.sub(scores, top, out=out).exp_()
    return shares.div_(shares.sum(-1, keepdim=True) + (sink - top).exp_())


def pull_sinks(p: Tensor, dp: Tensor, heads: int) -> Tensor:
    """Gradient (H,) of the sinks, float32: a sink takes its share of the softmax, and its value is zero."""
    missing, taken = 1 - p.sum(-1, dtype=torch.float32), (dp * p).sum(-1, dtype=torch.float32)
    return -(missing * taken).view(heads, -1).sum(-1)


def attend(q: Tensor, k: Tensor, v: Tensor, rule: Rule, drawn: torch.Generator | None, out: Tensor) -> None:
    """Write what the queries of a document attend to.

    Args:
        q: (H, n, D); k: (K, n, D); v: (K, n, D_v).
        drawn: what dropout is drawn from; the backward pass needs one that draws the same.
        out: (n, H, D_v).
    """
    H, n, D = q.shape
    K = k.shape[0]
    k, v = (x.to(working(q)).contiguous() for x in (k, v))
    room = Room(k, H * BLOCK * widest(n, rule.window))
    for block in blocks_of(n, rule.window):
        at, keys = slice(block.start, block.end), slice(block.first, block.end)
        scores = _scores(q[:, at].to(k.dtype).reshape(K, -1, D), k[:, keys], rule, block, room)
        p = softmax(scores, rule.sinks, out=scores)
        if (kept := _kept(p, rule, drawn, room)) is not None:
            p.mul_(kept)
        out[at] = torch.bmm(p, v[:, keys]).view(H, block.end - block.start, -1).transpose(0, 1)


def pull(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rule: Rule,
    drawn: torch.Generator | None,
    d_sinks: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, the last two summed over the blocks in at least float32.

    Args:
        d_out: (n, H, D_v).
        d_sinks: (H,) float32, to which the sinks' gradient is added; None where it is not wanted.
    """
    H, n, D = q.shape
    K = k.shape[0]
    k, v = (x.to(working(q)).contiguous() for x in (k, v))
    exact = torch.promote_types(q.dtype, torch.float32)
    dq, dk, dv = torch.empty_like(q), torch.zeros_like(k, dtype=exact), torch.zeros_like(v, dtype=exact)
    room = Room(k, H * BLOCK * widest(n, rule.window))
    for block in blocks_of(n, rule.window):
        at, keys = slice(block.start, block.end), slice(block.first, block.end)
        rows = q[:, at].to(k.dtype).reshape(K, -1, D)
        scores = _scores(rows, k[:, keys], rule, block, room)
        p = softmax(scores, rule.sinks, out=scores if rule.softcap is None else room("p", _shape(scores)))
        do = d_out[at].to(k.dtype).transpose(0, 1).reshape(K, rows.shape[1], -1)
        dp, kept = room("dp", _shape(p)), _kept(p, rule, drawn, room)
        dv[:, keys] += torch.bmm((p if kept is None else torch.mul(p, kept, out=dp)).mT, do)
        torch.bmm(do, v[:, keys].mT, out=dp)
        if kept is not None:
            dp.mul_(kept)
        if d_sinks is not None:
            d_sinks += pull_sinks(p, dp, H)
        ds = _pull_scores(dp, p, scores, rule)
        dq[:, at] = torch.bmm(ds, k[:, keys]).mul_(rule.scale).view(H, -1, D)
        dk[:, keys].add_(torch.bmm(ds.mT, rows), alpha=rule.scale)
    return dq, dk, dv


def _shape(scores: Tensor) -> tuple[int, int, int]:
    heads, rows, columns = scores.shape
    return heads, rows, columns


def _scores(q: Tensor, k: Tensor, rule: Rule, block: Block, room: Room) -> Tensor:
    """(K, G b, w) scores, capped, -inf where a query may not see a key."""
    scores = room("scores", (q.shape[0], q.shape[1], k.shape[1]))
    torch.baddbmm(scores, q, k.mT, beta=0, alpha=rule.scale, out=scores)
    if rule.softcap is not None:
        scores.div_(rule.softcap).tanh_().mul_(rule.softcap)
    hide_pairs(scores.view(-1, block.end - block.start, k.shape[1]), block, rule.window)
    return scores


def _kept(p: Tensor, rule: Rule, drawn: torch.Generator | None, room: Room) -> Tensor | None:
    """What dropout multiplies the probabilities with; None without dropout."""
    if rule.dropout == 0:
        return None
    kept = room("kept", _shape(p)).bernoulli_(1 - rule.dropout, generator=drawn)
    return kept.div_(1 - rule.dropout)


def _pull_scores(dp: Tensor, p: Tensor, scores: Tensor, rule: Rule) -> Tensor:
    """Gradient of q k^T * scale, in place of `dp`; with a cap, `scores` are used up."""
    ds: Tensor = torch.ops.aten._softmax_backward_data.out(dp, p, -1, p.dtype, grad_input=dp)
    if (
        rule.softcap is not None
    ):  # tanh' = 1 - tanh^2; hidden pairs have no gradient, and no -inf to multiply it
        tanh = scores.clamp_min_(-rule.softcap).div_(rule.softcap)
        ds.sub_(tanh.square_().mul_(ds))
    return ds
