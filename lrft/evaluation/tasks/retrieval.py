"""Which passages a model's embeddings find for a query."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor

from lrft.data.encoded import Encoded
from lrft.data.eval_batches import eval_batches
from lrft.data.rows import Rows
from lrft.evaluation.batching import scoring
from lrft.evaluation.divide import divided
from lrft.evaluation.ranking import mean_of, ndcg_at, recall_at, reciprocal_rank_at
from lrft.evaluation.subject import Subject
from lrft.evaluation.tasks._encoded import check_form, encode_texts, shortened
from lrft.evaluation.tasks._task import OfRows, TaskResult
from lrft.registry.axes import TASKS
from lrft.registry.config import Annotated, Field
from lrft.registry.errors import NumericalError
from lrft.registry.json import Json

FIRST = 10  # places that MRR and nDCG look at
QUERIES = 256  # whose similarities with a whole corpus exist at a time


@dataclass
class _Corpus:
    """The passages of a source, and the passages that are meant by each of its queries, all as places of texts."""

    passages: dict[int, None] = field(default_factory=dict)
    queries: dict[int, dict[int, None]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Found:
    """A query: the ranks of its passages, and what stands first."""

    query: int
    relevant: list[int]
    ranks: list[int]
    first: int


@TASKS.register
class Retrieval(OfRows):
    """Queries of the held-out rows, each looked for among all passages of these rows by the cosine of embeddings.

        r_1 < r_2 < ... : the ranks of a query's own passages among all, from 1 on
        recall_at_k = mean over queries of the share of its passages with r_i <= k, for every k of `at`
        mrr_at_10   = mean over queries of 1 / r_1, or 0 where r_1 > 10
        ndcg_at_10  = mean over queries of sum over r_i <= 10 of 1 / log2(1 + r_i), over that of the best order

    Prompt: `retrieval-1`: query and passages of the rows in the recipe's format, or in the task's own `format`, each
    encoded as for training and embedded once. Rows are those of `data.eval`, or the task's own `data`.
    Score: the passages are the positives and the hard negatives of all rows, equal ones counted once (`passages`);
    equal queries are one, all of whose positives are meant. A passage as similar as the one that is meant stands before
    it. Of several sources each is a corpus of its own, and its scores stand beside those of all queries
    (`recall_at_1/NAME`). `eval.limit` limits rows, and with them the passages. Rows that `data.too_long` drops are left
    out and counted (`left_out`), cut ones are scored cut (`truncated`). Scores have a standard error over queries.
    Source: standard; nDCG as Järvelin and Kekäläinen, 2002, with a gain of 1; named as MTEB names them.
    """

    aliases = {
        "recall_at_k mrr ndcg beir mteb information_retrieval": "tasks: [retrieval]",
    }

    version = "retrieval-1"
    requires = {"passages"}
    better = {
        "recall_at_1": "higher",
        "recall_at_5": "higher",
        "recall_at_15": "higher",
        "mrr_at_10": "higher",
        "ndcg_at_10": "higher",
    }

    class Config(OfRows.Config):
        at: list[Annotated[int, Field(gt=0)]] = Field(
            [1, 5, 15], min_length=1, description="places that recall looks at, each a score"
        )

    config: Config

    def run(self, subject: Subject, limit: int | None) -> TaskResult:
        """Encode as for training, embed every text once, then rank the passages of every query.

        Raises:
            DataError: the rows are no queries with passages, or there is none to score.
            NumericalError: an embedding is no finite number.
        """
        rows = self.rows(subject, limit)
        renderer = self.renderer(subject, subject.renderer.too_long)
        check_form(renderer, "passages", "queries with passages", "retrieval")
        encoded, kept = encode_texts(subject, rows, renderer, "is a query with a passage")
        texts, corpora = _corpora(rows, encoded, kept)
        embedded = self._embedded(subject, texts)
        if bad := (~embedded.isfinite().all(1)).nonzero()[:, 0].tolist():
            shown = str(subject.tokenizer.decode(texts[bad[0]].input_ids))[:60]
            raise NumericalError(f"the embedding of {shown!r} is no finite number")
        found = {name: list(_ranked(corpus, embedded)) for name, corpus in corpora.items()}
        whole = list(chain.from_iterable(found.values()))
        metrics = self._metrics(whole)
        for name, part in found.items() if len(found) > 1 else ():
            metrics |= self._metrics(part, f"/{name}")
        passages: dict[str, float] = {"passages": sum(len(corpus.passages) for corpus in corpora.values())}
        metrics |= passages | shortened(encoded, kept)
        return self.result(subject, rows, metrics, _samples(subject, texts, whole), n=len(whole))

    def _embedded(self, subject: Subject, texts: Sequence[Encoded]) -> Tensor:
        """Unit vectors (texts, d) in float32 on the host."""
        model = subject.model
        batches = list(eval_batches(texts, subject.batch_tokens, subject.pad_id))
        with scoring(model):
            found = divided(
                batches,
                lambda batch: model.embeddings(batch.to(model.device)).cpu(),
                subject.watch(self.name, len(texts)),
                lambda batch: len(batch.documents),
                subject.team,
            )
        places = torch.tensor([index for batch in batches for index in batch.examples])
        return torch.cat(found)[places.argsort()]

    def _metrics(self, found: Sequence[_Found], of: str = "") -> dict[str, float]:
        ranks = [one.ranks for one in found]
        scores: dict[str, float] = {}
        for k in dict.fromkeys(self.config.at):
            scores |= mean_of(f"recall_at_{k}{of}", [recall_at(one, k) for one in ranks])
        scores |= mean_of(f"mrr_at_{FIRST}{of}", [reciprocal_rank_at(one, FIRST) for one in ranks])
        return scores | mean_of(f"ndcg_at_{FIRST}{of}", [ndcg_at(one, FIRST) for one in ranks])


def _corpora(
    rows: Rows, encoded: Sequence[Encoded], kept: Sequence[int]
) -> tuple[list[Encoded], dict[str, _Corpus]]:
    """Every text once, and by source which of them are queries and passages."""
    places: dict[tuple[int, ...], int] = {}
    texts: list[Encoded] = []
    corpora: dict[str, _Corpus] = {}
    for index in kept:
        corpus = corpora.setdefault(rows.sources[rows.source(index)] if rows.sources else "", _Corpus())
        here = []
        for text in encoded[index].documents():
            ids = tuple(text.input_ids)
            if ids not in places:
                places[ids] = len(texts)
                texts.append(text)
            here.append(places[ids])
        query, positive, *_ = here
        corpus.passages |= dict.fromkeys(here[1:])
        corpus.queries.setdefault(query, {})[positive] = None
    return texts, corpora


def _ranked(corpus: _Corpus, embedded: Tensor) -> Iterator[_Found]:
    """The ranks of every query's passages; what is as similar as one that is meant, and is not meant, stands before."""
    passages = list(corpus.passages)
    column = {place: at for at, place in enumerate(passages)}
    table = embedded[torch.tensor(passages)]
    queries = list(corpus.queries)
    for start in range(0, len(queries), QUERIES):
        some = queries[start : start + QUERIES]
        for query, similar in zip(some, embedded[torch.tensor(some)] @ table.T, strict=True):
            relevant = list(corpus.queries[query])
            meant = torch.tensor([column[place] for place in relevant])
            others = torch.ones(len(passages), dtype=torch.bool)
            others[meant] = False
            falling = similar[meant].sort(descending=True).values
            before = (similar[others][:, None] >= falling).sum(0)
            ranks = [int(count) + k + 1 for k, count in enumerate(before)]
            first = torch.where(others, similar, -torch.inf) if ranks[0] > 1 else similar
            yield _Found(query, relevant, ranks, passages[int(first.argmax())])


def _samples(subject: Subject, texts: Sequence[Encoded], found: Sequence[_Found]) -> list[dict[str, Json]]:
    def shown(place: int) -> str:
        return str(subject.tokenizer.decode(texts[place].input_ids))

    return [
        {
            "prompt": shown(one.query),
            "output": shown(one.first),
            "reference": shown(one.relevant[0]),
            "correct": one.ranks[0] == 1,
            "rank": one.ranks[0],
        }
        for one in found
    ]
