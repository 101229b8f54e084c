"""What the frozen base makes of a task: hidden states of its rows, of its prompts, or of its description."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lrft.core import stop
from lrft.core.batch import Batch
from lrft.core.generate import Wants
from lrft.data.collate import collate
from lrft.data.encoded import Encoded
from lrft.evaluation.batching import scoring
from lrft.evaluation.lengths import check_lengths
from lrft.evaluation.row_features import cut
from lrft.evaluation.subject import Progress, silent
from lrft.model.causal_lm import CausalLM
from lrft.registry.errors import DataError, NumericalError


def condition_of_rows(
    model: CausalLM,
    rows: Sequence[Encoded],
    wants: Wants,
    *,
    batch_tokens: int,
    pad_id: int,
    progress: Progress = silent,
) -> Tensor:
    """The condition that `wants` says, (d,) or (rows, tokens, d), float32 on the CPU.

    Raises:
        DataError: a row begins with what is learnt, so it has no prompt, or is longer than the model's positions.
        NumericalError: a state is no finite number.
    """
    states = wants.kind == "last_state"
    read = list(rows) if states else [_prompt(row, wants.tokens) for row in rows]
    check_lengths(model.hf, [len(row.input_ids) for row in read], "data.train: usable row {}".format)
    found = []
    for part, hidden, batch in _hidden(model, read, batch_tokens, pad_id):
        progress("measuring tasks", part.stop, len(read))
        for row, start, end in batch.documents:
            own = hidden[row, start:end]
            found.append(own[-1] if states else _filled(own, wants.tokens))
    stacked = torch.stack(found)
    return _finite(stacked.mean(0) if states else stacked)


def condition_of_text(model: CausalLM, ids: Sequence[int], pad_id: int) -> Tensor:
    """Mean of the last hidden states of all tokens of a description, (d,) float32 on the CPU.

    Raises:
        DataError: it has no token, or more than the model has positions.
    """
    if not ids:
        raise DataError("--describe: the text has no token")
    check_lengths(model.hf, [len(ids)], lambda _: "--describe", "shorten the text")
    row = Encoded(list(ids), [False, *[True] * (len(ids) - 1)])
    ((_, hidden, _),) = _hidden(model, [row], len(ids), pad_id)
    return _finite(hidden[0].mean(0))


def _prompt(row: Encoded, tokens: int) -> Encoded:
    """What stands before the first token that is learnt, its last so many tokens."""
    length = row.supervised.index(True) if True in row.supervised else len(row.input_ids)
    if not length:
        raise DataError("data.format: a row begins with what is learnt, so it has no prompt")
    ids = row.input_ids[:length][-tokens:]
    return replace(
        row, input_ids=ids, supervised=[False] * len(ids), parts=(), label=None, features=(), wanted=None
    )


def _hidden(
    model: CausalLM, rows: Sequence[Encoded], batch_tokens: int, pad_id: int
) -> Iterator[tuple[range, Tensor, Batch]]:
    """Last hidden states (B, L, d) of consecutive rows, float32 on the CPU."""
    model.eval()
    for part in cut(rows, batch_tokens, None):
        stop.poll()
        batch = collate([[rows[k]] for k in part], pad_id, None, [[k] for k in part])
        with scoring(model):
            yield part, model.hidden(batch.to(model.device)).float().cpu(), batch


def _filled(states: Tensor, tokens: int) -> Tensor:
    """(n, d) -> (tokens, d), zeros behind."""
    return torch.cat([states, states.new_zeros(tokens - len(states), states.shape[1])])


def _finite(condition: Tensor) -> Tensor:
    if not condition.isfinite().all():
        raise NumericalError(
            "the base makes no finite numbers of a task; its weights or activations overflowed"
        )
    return condition
