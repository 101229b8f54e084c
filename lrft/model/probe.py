"""Whether a loaded model computes what lrft takes for granted, asked of the model itself before anything trains.

Two short documents go through the very attention backend that will train. Edits of one document must not reach the
other one, nor earlier tokens: the shapes stay the same, so any difference beyond rounding is a leak. Documents packed
in a row, and rows of a batch, must give the logits that transformers' own eager forward pass gives them alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lrft.core.batch import Batch
from lrft.model import attention
from lrft.model.asked import (
    Limits,
    another,
    asked_of,
    distance_between,
    reference,
    row_of,
    spread,
    two_documents,
)
from lrft.model.causal_lm import CausalLM
from lrft.registry.errors import first_line

HEAD, FUTURE, ROWS, PACKED, VALUES = "head", "future", "rows", "packed", "values"


@dataclass(frozen=True)
class Fault:
    """One thing that a model computes otherwise than it should.

    Attributes:
        kind: `future` (later tokens reach earlier ones), `packed` (documents of a row reach one another, or are
            computed otherwise than alone), `rows` (rows of a batch are computed otherwise than alone), or `values`
            (the backend differs from eager attention).
        what: in words.
    """

    kind: str
    what: str


@torch.no_grad()
def find_fault(model: CausalLM, packing: bool) -> Fault | None:
    """The first thing that the model, with the attention backend it has, computes wrongly; None when all is well.

    Args:
        model: on the device it will run on; put into evaluation mode and back.
        packing: rows will hold several documents.
    """
    with asked_of(model) as (asked, limits):
        try:
            return _fault(asked, packing, limits)
        except attention.Unsupported as error:
            return Fault(VALUES, str(error))
        except Exception as error:  # whatever a model's own code raises: it cannot be run in this way
            return Fault(VALUES, f"its forward pass ends in {type(error).__name__}: {first_line(error)}")


@torch.no_grad()
def training_fault(model: CausalLM) -> Fault | None:
    """What the backend does not compute of a pass in training mode, such as dropout; None when it computes all."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.random.fork_rng():
            model.train()
            model.hidden(batch_of([[[1, 2, 3]]]).to(model.device))
    except attention.Unsupported as error:
        return Fault(VALUES, str(error))
    except Exception:  # whatever else a model's own code raises has nothing to do with the backend
        return None
    finally:
        for module, training in modes:
            module.training = training
    return None


@torch.no_grad()
def looks_ahead(model: CausalLM) -> bool:
    """Whether transformers' own eager forward pass lets later tokens change what is predicted before them."""
    with asked_of(model) as (asked, limits):
        first, second = two_documents(asked)
        rows = torch.tensor([first, [*first[:-1], another(asked, first[-1], {*first, *second})]])
        before, after = reference(asked, rows).float()
        return spread(after[:-1] - before[:-1]) > limits.edit * spread(after[-1:] - before[-1:])


def batch_of(rows: list[list[list[int]]]) -> Batch:
    """Rows of documents, nothing supervised, padded on the right."""
    length = max(sum(map(len, row)) for row in rows)
    ids, positions = torch.zeros(2, len(rows), length, dtype=torch.int64)
    documents = []
    for number, row in enumerate(rows):
        at = 0
        for document in row:
            end = at + len(document)
            ids[number, at:end], positions[number, at:end] = torch.tensor(document), torch.arange(end - at)
            documents.append((number, at, end))
            at = end
        positions[number, at:] = torch.arange(length - at)
    none = ids.new_empty(0)
    return Batch(ids, positions, tuple(documents), none, none)


def _fault(model: CausalLM, packing: bool, limits: Limits) -> Fault | None:
    first, second = two_documents(model)
    edited = [*first[:-1], another(model, first[-1], {*first, *second})]
    rows = [[first, second]] if packing else [[first], [second]]
    with attention.listening():
        before = _per_document(model, rows)
        after = _per_document(model, [[edited, *row[1:]] if row[0] is first else row for row in rows])
        alone = _per_document(model, [[first], [second]]) if packing else before
    expected = [reference(model, row_of(model, document))[0] for document in (first, second)]
    moved = spread(after[0][-1:] - before[0][-1:])
    future = spread(after[0][:-1] - before[0][:-1]) / moved
    leak = spread(after[1] - before[1]) / moved
    if not future <= limits.edit:
        return Fault(FUTURE, "later tokens change what is predicted before them")
    for logits, wanted in zip(alone, expected, strict=True):
        if not (distance := distance_between(logits, wanted, limits)) <= limits.value:
            what = f"its logits differ from those of transformers' eager attention by {distance:.2g} of their spread"
            return Fault(VALUES, what)
    if packing and not leak <= limits.edit:
        return Fault(PACKED, "documents packed into one row see each other")
    for logits, wanted in zip(before, expected, strict=True):
        if not (distance := distance_between(logits, wanted, limits)) <= limits.value:
            what = f"documents packed into one row are computed otherwise than alone ({distance:.2g} of the spread)"
            return Fault(PACKED, what)
    return None


def _per_document(model: CausalLM, rows: list[list[list[int]]]) -> list[Tensor]:
    """Logits (tokens, V) of each document in float32, less their mean, which no prediction depends on."""
    batch = batch_of(rows)
    logits = model(batch.to(model.device)).float()
    logits = logits - logits.mean(-1, keepdim=True)
    return [logits[row, start:end] for row, start, end in batch.documents]
