"""What the logits of a row's classes depend on at every site: its inputs, and the gradients of its outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lrft.core.batch import Batch
from lrft.data.collate import collate
from lrft.data.encoded import Encoded
from lrft.evaluation.batching import token_batches
from lrft.evaluation.choices import Choice
from lrft.evaluation.pairs import Pair, parameters_of
from lrft.evaluation.subject import EvaluationStopped, Subject
from lrft.registry.errors import NumericalError

Seen = dict[str, tuple[Tensor, Tensor]]


class Look(NamedTuple):
    """One site in a batch of n rows of T tokens, float32.

    Attributes:
        x: (n, T, in) what went in.
        dy: (C, n, T, out) the gradient of each class's logit by what came out; 0 at padding.
        real: (n, T) which tokens are no padding.
    """

    x: Tensor
    dy: Tensor
    real: Tensor

    def inputs(self, pair: Pair) -> dict[str, Tensor]:
        """What each factor multiplies, (n, T, p)."""
        return {"A": self.x, "B": self.x @ pair.A.detach().float().mT}

    def gradients(self, pair: Pair) -> dict[str, Tensor]:
        """The gradient of each class's logit by what each factor gives, (C, n, T, m)."""
        scaled = pair.scale * self.dy
        return {"A": scaled @ pair.B.detach().float(), "B": scaled}

    def jacobians(self, pair: Pair) -> dict[str, Tensor]:
        """The gradient of each class's logit by each factor, (n, C, m, p)."""
        inputs, gradients = self.inputs(pair), self.gradients(pair)
        return {name: torch.einsum("cntm,ntp->ncmp", gradients[name], inputs[name]) for name in inputs}


def look(
    subject: Subject, pairs: Sequence[Pair], choices: Sequence[Choice]
) -> tuple[Tensor, dict[str, Look]]:
    """Logits (n, C) float32 of rows that have as many classes each, and what is seen at every site."""
    batch = _batch(subject, choices)
    with torch.enable_grad(), _watching(pairs) as seen:
        hidden = batch.supervised_rows(subject.model.hidden(batch))
        all_logits = subject.model.head.logits(hidden).float()
        classes = torch.tensor([one.classes for one in choices], device=all_logits.device)
        logits = all_logits.gather(1, classes)
        outputs = [seen[pair.name][1] for pair in pairs]
        gradients = [
            torch.autograd.grad(logits[:, c].sum(), outputs, retain_graph=c + 1 < classes.shape[1])
            for c in range(classes.shape[1])
        ]
    real = _real(batch)
    found = {
        pair.name: _as_rows(seen[pair.name][0], torch.stack([one[k] for one in gradients]), real)
        for k, pair in enumerate(pairs)
    }
    return logits.detach(), found


def looks(
    subject: Subject, pairs: Sequence[Pair], choices: Sequence[Choice], what: str, tokens: int
) -> Iterator[tuple[list[int], Tensor, dict[str, Look]]]:
    """Indices of the rows, and `look` at them, for all rows in batches of at most so many tokens, padding included.

    Raises:
        EvaluationStopped: somebody asked to stop.
        NumericalError: a logit is no finite number.
    """
    subject.model.eval()  # dropout is off, as in the posterior's mode
    for parameter in subject.model.parameters():
        parameter.requires_grad_(False)
    for factor in parameters_of(pairs):
        factor.requires_grad_(True)
    watch, done = subject.watch(what, len(choices)), 0
    watch.report(done)
    for indices in _batches(choices, tokens):
        if watch.should_stop():
            raise EvaluationStopped(done, len(choices))
        logits, found = look(subject, pairs, [choices[i] for i in indices])
        if not bool(logits.isfinite().all()):
            raise NumericalError(f"row {indices[0]} or one beside it: a logit is no finite number")
        yield indices, logits, found
        done += len(indices)
        watch.report(done)


def _batches(choices: Sequence[Choice], tokens: int) -> list[list[int]]:
    """Rows of as many classes each, the longest first."""
    counts: dict[int, list[int]] = {}
    for index, one in enumerate(choices):
        counts.setdefault(len(one.classes), []).append(index)
    return [
        [members[k] for k in batch]
        for members in counts.values()
        for batch in token_batches([len(choices[i].prompt) + 1 for i in members], tokens)
    ]


def _batch(subject: Subject, choices: Sequence[Choice]) -> Batch:
    rows = [Encoded([*one.prompt, one.classes[0]], [False] * len(one.prompt) + [True]) for one in choices]
    made = collate([[row] for row in rows], subject.pad_id, None, [[i] for i in range(len(rows))])
    return made.to(subject.model.device)


def _real(batch: Batch) -> Tensor:
    real = torch.zeros_like(batch.input_ids, dtype=torch.bool)
    for row, start, end in batch.documents:
        real[row, start : end - 1] = True  # what was appended to be predicted decides nothing
    return real


def _as_rows(x: Tensor, dy: Tensor, real: Tensor) -> Look:
    """A head sees the deciding positions alone, (n, in); some code gives a layer the tokens of all rows as one."""
    if x.shape[:-1].numel() == real.numel():
        x, dy = x.reshape(*real.shape, -1), dy.reshape(len(dy), *real.shape, -1)
    elif x.dim() == 2:
        x, dy, real = x[:, None], dy[:, :, None], torch.ones_like(real[:, :1])
    return Look(x.float(), dy.float(), real)


@contextmanager
def _watching(pairs: Sequence[Pair]) -> Iterator[Seen]:
    seen: Seen = {}

    def keep(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen[name] = inputs[0].detach(), output

    handles = [pair.module.register_forward_hook(partial(keep, pair.name)) for pair in pairs]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
