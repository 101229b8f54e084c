"""`Batcher`: one thread that computes all answers, a token of every row at a time; rows come and go between tokens."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from lrft.core.adapted import adapters_off
from lrft.evaluation.batching import scoring
from lrft.evaluation.decoded import decoded
from lrft.evaluation.sampling import choose, uniform
from lrft.evaluation.subject import Subject
from lrft.model.batching import own_settings, stock_attention
from lrft.model.joined import Joined
from lrft.serve.asked import Asked, End, Fault, Piece
from lrft.serve.counts import Counts
from lrft.serve.products import Products
from lrft.serve.store import Loaded, Store
from lrft.serve.waiting import Limits, Waiting
from lrft.serve.words import Words


@dataclass(eq=False)
class _Row:
    """An answer that is being computed."""

    asked: Asked
    loaded: Loaded | None
    words: Words
    tokens: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.asked.adapter or ""


class Batcher:
    """Answers of one base with many adapters.

    Args:
        subject: its own adapter, if it has one, is off while this runs.
        sites: the layers that adapters change.
    """

    def __init__(self, subject: Subject, store: Store, sites: Sequence[str], limits: Limits) -> None:
        self.subject, self.store = subject, store
        self.queue = Waiting(store, limits)
        self.counts = Counts()
        self._products = Products(store.pages)
        self._sites = sites
        self._rows: list[_Row] = []
        self._past = Joined(subject.hf)
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)

    def start(self) -> None:
        """Begin to compute."""
        self._thread.start()

    def close(self) -> None:
        """Stop after the token at hand; who still waits is told."""
        self.queue.close()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether anybody computes."""
        return self._thread.is_alive()

    @property
    def running(self) -> int:
        """Answers being computed."""
        return len(self._rows)

    def _run(self) -> None:
        hf = self.subject.hf
        modules = [(site, hf.get_submodule(site)) for site in self._sites]
        with ExitStack() as stack:
            for one in (adapters_off(hf), scoring(self.subject.model), own_settings(hf), stock_attention(hf)):
                stack.enter_context(one)
            stack.enter_context(decoded(hf))
            stack.enter_context(self._products.on(modules))
            while self.queue.until(lambda: bool(self._rows)):
                try:
                    self._step()
                except (
                    Exception
                ) as error:  # whatever a model's code raises: those rows fail, the server goes on
                    self._fail(
                        str(error).strip().splitlines()[0][:200] if str(error).strip() else repr(error)
                    )
        self._fail("the server ends", 503)

    def _step(self) -> None:
        """The next token of every row, the first one of those that come."""
        self._drop([row for row in self._rows if self._over(row.asked)])
        if self._rows:
            logits = self._compute(self._past, self._rows, [row.tokens[-1:] for row in self._rows])
            self._drop(self._take(self._rows, logits))
        admitted = self.queue.admit([row.asked for row in self._rows], self._over)
        coming = [_Row(one, loaded, Words(self.subject.decode, one.stops)) for one, loaded in admitted]
        coming.sort(key=lambda row: row.name)
        if coming:
            self._begin(coming)

    def _begin(self, coming: list[_Row]) -> None:
        past, ended = Joined(self.subject.hf), list[_Row]()
        try:
            logits = self._compute(past, coming, [row.asked.ids for row in coming])
            ended = self._take(coming, logits)
            left = [row for row in coming if row not in ended]
            past.keep([coming.index(row) for row in left])
            rows = [*self._rows, *left]
            # Rows of one adapter stand together, so that its products are of slices.
            order = sorted(range(len(rows)), key=lambda place: rows[place].name)
            if left:
                self._past.add(past, order)
        except BaseException:
            self._rows += [row for row in coming if row not in ended]  # so that they are told
            raise
        finally:
            self._let_go(ended)
        self._rows = [rows[place] for place in order]

    def _compute(self, past: Joined, rows: Sequence[_Row], ids: Sequence[Sequence[int]]) -> Tensor:
        groups, start = [], 0
        for _, members in groupby(rows, key=lambda row: row.name):
            together = list(members)
            if (loaded := together[0].loaded) is not None:
                groups.append((loaded, slice(start, start + len(together))))
            start += len(together)
        with self._products.of(groups, len(rows)), self.counts.step(len(rows), sum(map(len, ids))):
            return past.step(ids, self.subject.pad_id)

    def _take(self, rows: Sequence[_Row], logits: Tensor) -> list[_Row]:
        """Choose and tell the next token of every row; those that have ended."""
        finite = logits.amax(-1).isfinite()
        chosen = logits.argmax(-1)
        for place, row in enumerate(rows):
            sampling = row.asked.sampling
            if not sampling.greedy:
                drawn = torch.tensor([uniform(sampling.seed, 0, len(row.tokens))], dtype=torch.float64)
                chosen[place] = choose(logits[place, None], drawn.to(logits.device), sampling)[0]
        tokens = torch.where(finite, chosen, -1).tolist()
        return [row for row, token in zip(rows, tokens, strict=True) if self._said(row, token)]

    def _said(self, row: _Row, token: int) -> bool:
        """Tell a token; whether it was the last."""
        asked = row.asked
        if token < 0:
            asked.tell(
                Fault(500, "the model's logits are no finite numbers; weights or activations overflowed")
            )
            return True
        if token in asked.stop_ids:
            return self._end(row, "stop")
        row.tokens.append(token)
        if text := row.words.add(token):
            asked.tell(Piece(text))
        if row.words.stopped:
            return self._end(row, "stop")
        return len(row.tokens) == asked.most and self._end(row, "length")

    def _end(self, row: _Row, reason: str) -> bool:
        if text := row.words.end():
            row.asked.tell(Piece(text))
        # Counted before it is told, so that who is told and looks finds it.
        self.counts.ended(len(row.tokens))
        row.asked.tell(End("stop" if reason == "stop" or row.words.stopped else "length", len(row.tokens)))
        return True

    def _over(self, asked: Asked) -> bool:
        """Whether nothing more is computed for it, which is told where somebody waits."""
        fault = asked.fault()
        if fault is not None:
            self.counts.failed()
            asked.tell(fault)
        return fault is not None

    def _drop(self, ended: Sequence[_Row]) -> None:
        if not ended:
            return
        left = [place for place, row in enumerate(self._rows) if row not in ended]
        self._past.keep(left)
        self._rows = [self._rows[place] for place in left]
        self._let_go(ended)

    def _let_go(self, rows: Sequence[_Row]) -> None:
        for row in rows:
            if row.loaded is not None:
                self.store.let_go(row.loaded)

    def _fail(self, message: str, status: int = 500) -> None:
        """Nobody who is computed gets an answer; at the end, nobody who waits either."""
        lost = [row.asked for row in self._rows]
        if self.queue.closed:
            lost += self.queue.clear()
        for asked in lost:
            self.counts.failed()
            asked.tell(Fault(status, message))
        rows, self._rows, self._past = self._rows, [], Joined(self.subject.hf)
        self._let_go(rows)
