"""What a model makes of each row: its loss, its mean or its last hidden state, or the gradient of its loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from lrft.core import stop
from lrft.core.batch import Batch
from lrft.core.data_selection import Need
from lrft.data.collate import collate
from lrft.data.encoded import Encoded
from lrft.evaluation.batching import scoring
from lrft.evaluation.lengths import check_lengths
from lrft.evaluation.loss import row_losses
from lrft.evaluation.subject import Progress
from lrft.model.causal_lm import CausalLM
from lrft.model.trained import parameter_infos
from lrft.ops.loss import linear_cross_entropy
from lrft.ops.sign_projection import project_signs
from lrft.registry.errors import NumericalError

GRADIENTS = 16  # rows whose gradients are held at a time, and numbers in them
HELD = 2**27

Measure = Callable[[Batch], Tensor]
"""One micro-batch -> (documents, numbers) in float32 on the CPU."""


def measure_rows(
    model: CausalLM,
    rows: Sequence[Encoded],
    need: Need,
    *,
    batch_tokens: int,
    pad_id: int,
    dimensions: int = 0,
    seed: int = 0,
    done: int = 0,
    progress: Progress | None = None,
    where: Callable[[int], str] = "row {}".format,
) -> Iterator[Tensor]:
    """What is needed of the rows from `done` on, in their order, a batch of consecutive ones at a time.

    Batches are cut without regard to `done`, so what a row is measured as does not depend on where it was gone on with.

    Args:
        dimensions: that gradients are projected to; those of an adapter with no more numbers are taken whole.
        seed: of the projection.
        done: rows that are measured already.

    Raises:
        DataError: a row is longer than the model's positions.
        NumericalError: something is no finite number.
    """
    check_lengths(model.hf, [len(row.input_ids) for row in rows], where)
    gradients = need == "gradients"
    measure = _gradients(model, dimensions, seed) if gradients else _LOSSES_AND_STATES[need](model)
    model.eval()
    for part in cut(rows, batch_tokens, _together(model) if gradients else None):
        if part.stop <= done:
            continue
        stop.poll()
        batch = collate([[rows[k]] for k in part], pad_id, None, [[k] for k in part])
        found = measure(batch)
        if bad := (~torch.isfinite(found).all(1)).nonzero()[:, 0].tolist():
            raise NumericalError(
                f"{where(part[bad[0]])}: the {need} have values that are no finite numbers; the model's weights or "
                "activations overflowed"
            )
        if progress is not None:
            progress(f"measuring {need}", part.stop, len(rows))
        yield found[max(done - part.start, 0) :]


def cut(rows: Sequence[Encoded], batch_tokens: int, most: int | None) -> Iterator[range]:
    """Consecutive rows of which rows x longest row stays within `batch_tokens`, and no more than `most`."""
    start = longest = 0
    for index, row in enumerate(rows):
        longest = max(longest, len(row.input_ids))
        count = index - start + 1
        if count > 1 and (longest * count > batch_tokens or (most is not None and count > most)):
            yield range(start, index)
            start, longest = index, len(row.input_ids)
    if start < len(rows):
        yield range(start, len(rows))


def _together(model: CausalLM) -> int:
    """Of how many rows gradients are projected at a time."""
    total = sum(info.param.numel() for info in parameter_infos(model))
    return max(1, min(GRADIENTS, HELD // total))


def _losses(model: CausalLM) -> Measure:
    """Mean cross-entropy in nats of the tokens that are learnt, (documents, 1)."""

    def measure(batch: Batch) -> Tensor:
        sums = row_losses(model, [batch])
        return torch.tensor([[total / max(tokens, 1)] for total, tokens in sums])

    return measure


def _embeddings(model: CausalLM) -> Measure:
    """Mean of the last hidden states over all tokens of a document, (documents, d)."""

    def measure(batch: Batch) -> Tensor:
        with scoring(model):
            hidden = model.hidden(batch.to(model.device)).float()
        return torch.stack([hidden[row, a:b].mean(0) for row, a, b in batch.documents]).cpu()

    return measure


def _states(model: CausalLM) -> Measure:
    """Last hidden state of a document's last token, (documents, d)."""

    def measure(batch: Batch) -> Tensor:
        with scoring(model):
            hidden = model.hidden(batch.to(model.device)).float()
        return torch.stack([hidden[row, end - 1] for row, _, end in batch.documents]).cpu()

    return measure


_LOSSES_AND_STATES = {"losses": _losses, "embeddings": _embeddings, "states": _states}


def _gradients(model: CausalLM, dimensions: int, seed: int) -> Measure:
    """Gradient of the mean cross-entropy by what trains, S^T g / sqrt(P), (documents, `dimensions`)."""
    parameters = [info.param for info in parameter_infos(model)]
    total = sum(parameter.numel() for parameter in parameters)

    def of(batch: Batch) -> Tensor:
        hidden = batch.supervised_rows(model.hidden(batch))
        loss = linear_cross_entropy(hidden, model.head, batch.targets) / batch.targets.numel()
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        whole = [
            torch.zeros_like(parameter) if gradient is None else gradient
            for parameter, gradient in zip(parameters, found, strict=True)
        ]
        return torch.cat([gradient.flatten().float() for gradient in whole]).cpu()

    def measure(batch: Batch) -> Tensor:
        rows = torch.stack([of(_alone(batch, row).to(model.device)) for row in range(len(batch.documents))])
        projected = rows if total <= dimensions else project_signs(rows, dimensions, seed)
        found: Tensor = projected / total**0.5
        return found

    return measure


def _alone(batch: Batch, row: int) -> Batch:
    """One row of a batch of single documents, without its padding."""
    length = batch.input_ids.shape[1]
    _, _, end = batch.documents[row]
    own = (batch.supervised >= row * length) & (batch.supervised < (row + 1) * length)
    return Batch(
        input_ids=batch.input_ids[row : row + 1, :end],
        position_ids=batch.position_ids[row : row + 1, :end],
        documents=((0, 0, end),),
        supervised=batch.supervised[own] - row * length,
        targets=batch.targets[own],
        examples=batch.examples[row : row + 1],
        features=batch.features[row : row + 1],
    )
