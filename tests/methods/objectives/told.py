"""A language model of four tokens that is told its probabilities."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from lrft.core.adapted import Adapted
from lrft.core.params import Site
from lrft.data.collate import collate
from lrft.data.encoded import Encoded
from lrft.ops.loss import Head
from lrft.registry.axes import ADAPTERS, OBJECTIVES, QUANTIZERS


def objective(name, **settings):
    cls = OBJECTIVES.get(name)
    return cls(cls.Config(method=name, **settings))


class Table(nn.Module):
    """The reference's in the base, the policy's through LoRA; one line for every token before, or one for all."""

    def __init__(self, reference, policy):
        super().__init__()
        config = ADAPTERS.declared("lora").config(method="lora", rank=4, alpha=4)
        lora = ADAPTERS.get("lora")(config, Site("table", 4, 4))
        base = _columns(reference)
        with torch.no_grad():
            lora.A.copy_(torch.eye(4))
            lora.B.copy_(_columns(policy) - base)
        self.table = Adapted(QUANTIZERS.get("none")(base), lora)
        head = nn.Linear(4, 4, bias=False).requires_grad_(False)
        head.weight.copy_(torch.eye(4))
        self.head = Head(head)

    def hidden(self, batch):
        return self.table(F.one_hot(batch.input_ids, 4).float())

    @property
    def logits(self):
        """What trains, (token, token before)."""
        return self.table.adapter.B


def _columns(probabilities):
    found = torch.tensor(probabilities).log()
    return found.mT.contiguous() if found.dim() == 2 else found[:, None].repeat(1, 4)


def drawn(seed):
    """A table of random probabilities, one line for every token before."""
    return torch.randn(4, 4, generator=torch.Generator().manual_seed(seed)).softmax(-1).tolist()


def pair(prompt, chosen, rejected):
    mask = [False] * len(prompt)
    return Encoded(
        prompt + chosen + prompt + rejected,
        mask + [True] * len(chosen) + mask + [True] * len(rejected),
        parts=(len(prompt + chosen), len(prompt + rejected)),
    )


def judged(prompt, tokens, wanted):
    return Encoded(prompt + tokens, [False] * len(prompt) + [True] * len(tokens), wanted=wanted)


def batch_of(*rows):
    return collate([[row] for row in rows], 0, None, [[k] for k in range(len(rows))])


def answer(table, prompt, tokens):
    """Log-probability of every token of an answer, from a table of log-probabilities (token, token before)."""
    before = [prompt[-1], *tokens[:-1]]
    return torch.stack([table[token, last] for token, last in zip(tokens, before, strict=True)])
