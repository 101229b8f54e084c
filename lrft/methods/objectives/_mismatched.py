"""Prompts with the answers of other rows."""

from __future__ import annotations

import torch

from lrft.core.batch import IGNORED, Batch


def mismatched(batch: Batch) -> Batch:
    """Every document's prompt with the (last part of the) answer of the document after it, a row each, (n, L').

    A prompt is what stands before a document's first target. Reads the batch on the host once.
    """
    ids, length = batch.input_ids.tolist(), batch.input_ids.shape[1]
    learnt = set(batch.supervised.tolist())
    prompts: list[list[int]] = []
    answers: list[list[tuple[int, bool]]] = []
    for row, start, end in batch.documents:
        first = next(at for at in range(start, end) if row * length + at in learnt)
        prompts.append(ids[row][start : first + 1])
        answers.append([(ids[row][at + 1], row * length + at in learnt) for at in range(first, end - 1)])
    answers = answers[1:] + answers[:1]
    longest = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    input_ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
    targets = torch.full((len(prompts), longest), IGNORED)
    documents = []
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        tokens = prompt + [token for token, _ in answer]
        input_ids[row, : len(tokens)] = torch.tensor(tokens)
        targets[row, len(prompt) - 1 : len(tokens) - 1] = torch.tensor(
            [token if wanted else IGNORED for token, wanted in answer]
        )
        documents.append((row, 0, len(tokens)))
    supervised = (targets.flatten() != IGNORED).nonzero()[:, 0]
    return Batch(
        input_ids,
        _positions(documents, longest),
        tuple(documents),
        supervised,
        targets.flatten()[supervised],
        features=batch.features,
    ).to(batch.input_ids.device)


def _positions(documents: list[tuple[int, int, int]], length: int) -> torch.Tensor:
    """From 0 in every document, and again in the padding behind it."""
    return torch.tensor([[*range(end), *range(length - end)] for _, _, end in documents], dtype=torch.int64)
