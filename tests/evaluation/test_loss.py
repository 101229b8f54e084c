"""Held-out loss: transformers' own number, from sums, without logits."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lrft.data.eval_batches import eval_batches
from lrft.data.tokenize import encode_all
from lrft.evaluation.loglik import continuation_logprobs
from lrft.evaluation.loss import held_out_loss, perplexity
from lrft.evaluation.subject import EvaluationStopped
from lrft.ops.loss import CHUNK
from lrft.registry.axes import TASKS
from lrft.registry.config import parse_choice
from lrft.registry.errors import DataError, NumericalError

ROWS = [{"prompt": f"Say {word}: ", "completion": word * (1 + i % 4)} for i, word in enumerate("abcdefghijk")]


class Largest(TorchDispatchMode):
    """Remembers the most rows of any tensor whose last dimension is the vocabulary."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            made = isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.dim() > 0
            if made and tensor.shape[-1] == self.vocabulary:
                self.rows = max(self.rows, tensor.numel() // self.vocabulary)
        return out


def transformers_loss(subject) -> tuple[float, int]:
    """Token-weighted mean of the loss that transformers computes from labels, row by row."""
    total, tokens = 0.0, 0
    subject.hf.set_attn_implementation("eager")
    for row in encode_all(subject.rows, subject.renderer):
        ids = torch.tensor([row.input_ids])
        labels = ids.masked_fill(~torch.tensor([row.supervised]), -100)
        with torch.no_grad():
            total += float(subject.hf(input_ids=ids, labels=labels).loss) * row.targets
        tokens += row.targets
    return total / tokens, tokens


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_loss_is_the_one_transformers_computes_from_labels(make_subject, family):
    subject = make_subject(family, ROWS)
    found = TASKS.get("loss")(parse_choice(TASKS, "loss")).run(subject, None)
    loss, tokens = transformers_loss(subject)
    assert found.metrics["loss"] == pytest.approx(loss, rel=1e-5)
    assert found.metrics["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert (found.metrics["tokens"], found.n) == (tokens, len(ROWS))


@pytest.mark.parametrize("batch_tokens", [1, 64, 100_000])
def test_the_loss_does_not_depend_on_the_batch_size(make_subject, batch_tokens):
    subject = make_subject(rows=ROWS)
    encoded = encode_all(subject.rows, subject.renderer)
    whole = held_out_loss(subject.model, eval_batches(encoded, 512, subject.pad_id))
    other = held_out_loss(subject.model, eval_batches(encoded, batch_tokens, subject.pad_id))
    assert other.loss == pytest.approx(whole.loss, rel=1e-6)
    assert (other.tokens, other.rows) == (whole.tokens, whole.rows)


def test_no_tensor_of_more_than_a_chunk_of_logits_is_ever_made(make_subject):
    rows = [{"prompt": "x", "completion": "abcdefgh" * 12}] * 8
    subject = make_subject(rows=rows, batch_tokens=10_000)
    vocabulary = subject.hf.get_output_embeddings().weight.shape[0]
    encoded = encode_all(subject.rows, subject.renderer)
    assert sum(row.targets for row in encoded) > 2 * CHUNK
    with Largest(vocabulary) as seen:
        held_out_loss(subject.model, eval_batches(encoded, 10_000, subject.pad_id))
    assert 0 < seen.rows <= CHUNK
    with Largest(vocabulary) as seen:
        continuation_logprobs(subject, [[5]] * 8, [[7] * 90] * 8)
    assert 0 < seen.rows <= CHUNK


def test_modes_and_gradients_are_as_before_also_after_an_error(make_subject):
    subject = make_subject(rows=ROWS)
    subject.model.train()
    frozen = subject.hf.get_output_embeddings()
    frozen.eval()
    before = [module.training for module in subject.model.modules()]

    def broken():
        assert not subject.model.training
        assert not torch.is_grad_enabled()
        raise OSError
        yield

    with pytest.raises(OSError):
        held_out_loss(subject.model, broken())
    assert [module.training for module in subject.model.modules()] == before
    assert torch.is_grad_enabled()


def test_a_signal_between_batches_stops_without_a_score(make_subject):
    subject = make_subject(rows=ROWS)
    encoded = encode_all(subject.rows, subject.renderer)
    asked: list[int] = []

    def third_time() -> bool:
        asked.append(1)
        return len(asked) == 3

    with pytest.raises(EvaluationStopped) as stopped:
        held_out_loss(subject.model, eval_batches(encoded, 1, subject.pad_id), third_time)
    assert len(asked) == 3
    assert stopped.value.exit_code == 130


def test_rows_without_targets_and_overflowing_models_are_errors(make_subject):
    subject = make_subject(rows=ROWS)
    with pytest.raises(DataError, match=r"data\.eval"):
        held_out_loss(subject.model, [])
    subject.hf.get_output_embeddings().weight.data.fill_(math.nan)
    encoded = encode_all(subject.rows, subject.renderer)
    with pytest.raises(NumericalError, match="nan"):
        held_out_loss(subject.model, eval_batches(encoded, 512, subject.pad_id))
    assert perplexity(1e6) == math.inf
