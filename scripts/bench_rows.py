"""The rows of a benchmark, once as lrft takes them and once as a padding collator gives them to the others."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from torch import Tensor

from bench_settings import PACKED_LENGTH, Settings
from lrft.core.batch import Batch
from lrft.data.collate import collate
from lrft.data.encoded import Encoded
from lrft.data.pack import pack


@dataclass(frozen=True)
class Work:
    """The documents of one step.

    Attributes:
        packed: for lrft, in one row.
        padded: `input_ids`, `attention_mask` and `labels` (B, L), the longest row unpadded.
        documents: the same, for a peer with a collator of its own.
    """

    packed: Batch
    padded: dict[str, Tensor]
    documents: list[Encoded]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each document."""
        return [len(document.input_ids) for document in self.documents]

    @property
    def tokens(self) -> int:
        """Real tokens."""
        return sum(self.lengths)

    @property
    def targets(self) -> int:
        """Positions whose next token is learnt."""
        return self.packed.targets.numel()


def make_work(settings: Settings) -> list[Work]:
    """One entry a step, gone through in turn."""
    return gsm8k_work(settings) if settings.gsm8k else random_work(settings)


def random_work(settings: Settings) -> list[Work]:
    """The same random tokens for both, every position learnt, no padding."""
    from transformers import AutoConfig

    vocabulary = AutoConfig.from_pretrained(settings.folder()).get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, vocabulary, (settings.rows, settings.length), generator=generator).tolist()
    rows = [Encoded(row, [False] + [True] * (len(row) - 1)) for row in ids]
    return [Work(joined(rows), padded(rows), rows)]


def gsm8k_work(settings: Settings) -> list[Work]:
    """`examples` questions and answers a step: joined for lrft, right-padded for the others."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(settings.folder())
    assert settings.gsm8k is not None
    encoded = []
    for line in settings.gsm8k.read_text(encoding="utf-8").splitlines()[: settings.pairs * settings.examples]:
        row = json.loads(line)
        prompt = tokenizer(f"Question: {row['question']}\nAnswer:").input_ids
        answer = [*tokenizer(f" {row['answer']}").input_ids, tokenizer.eos_token_id]
        if len(prompt) + len(answer) <= PACKED_LENGTH:
            encoded.append(Encoded(prompt + answer, [False] * len(prompt) + [True] * len(answer)))
    work = []
    for start in range(0, len(encoded), settings.examples):
        part = encoded[start : start + settings.examples]
        work.append(Work(joined(part), padded(part), part))
    return work


def joined(documents: list[Encoded]) -> Batch:
    """One row of all documents without padding, as training joins the rows of a micro-batch."""
    return collate([documents], 0, sum(len(e.input_ids) for e in documents), [list(range(len(documents)))])


def padded(encoded: list[Encoded]) -> dict[str, Tensor]:
    """What a padding collator gives transformers."""
    length = max(len(e.input_ids) for e in encoded)
    ids = torch.zeros(len(encoded), length, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, e in enumerate(encoded):
        n = len(e.input_ids)
        ids[i, :n], mask[i, :n] = torch.tensor(e.input_ids), 1
        labels[i, :n] = torch.where(torch.tensor(e.supervised), ids[i, :n], -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def mixed_work(settings: Settings, documents: int) -> Work:
    """Documents of a sixth to half of `length` random tokens: packed into rows of `length`, padded for the others."""
    generator = torch.Generator().manual_seed(0)
    least, most = max(2, settings.length // 6), max(3, settings.length // 2)
    lengths = torch.randint(least, most, (documents,), generator=generator).tolist()
    rows = []
    for length in lengths:
        ids = torch.randint(3, 256, (length,), generator=generator).tolist()
        rows.append(Encoded(ids, [False] + [True] * (length - 1)))
    bins = pack(lengths, settings.length)
    return Work(
        collate([[rows[i] for i in row] for row in bins], 0, settings.length, bins), padded(rows), rows
    )
