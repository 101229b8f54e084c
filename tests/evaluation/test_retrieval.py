"""What embeddings find, beside a ranking by sorting, and on rows whose passages and queries repeat."""

from __future__ import annotations

import json
import math
import random
import statistics

import pytest
import torch

from lrft.core.batch import Batch
from lrft.data.formats.retrieval import Retrieval as Format
from lrft.data.sources import read_rows, read_sources
from lrft.data.tokenize import Renderer
from lrft.evaluation.ranking import mean_of, ndcg_at, recall_at, reciprocal_rank_at
from lrft.evaluation.subject import Subject
from lrft.evaluation.tasks.retrieval import Retrieval
from lrft.model.load import load_model
from lrft.model.tokenizer import load_tokenizer, pad_id
from lrft.recipe.sections import ModelSection
from lrft.registry.axes import FORMATS, TASKS
from lrft.registry.config import MixedSource, Source, parse_choice
from lrft.registry.errors import DataError, NumericalError

ROWS = [
    ("where is the key", "the key is at home", ["the door is open", "a cat sleeps"]),
    ("who sleeps", "a cat sleeps", ["the key is at home", "rain falls all day long and more"]),
    ("is it wet", "rain falls all day long and more", ["the door is open", "nothing"]),
    ("who sleeps", "the dog sleeps as well", []),
    ("one", "two", ["three"]),
]


@pytest.fixture(scope="module")
def subject_of(tiny, tmp_path_factory):
    """`subject_of(rows, ...)` -> the tiny model and these rows, each a list of them a source of its own."""

    def get(*sources, max_length=256, too_long="error", form=None):
        section = ModelSection(name=str(tiny()), dtype="float32")
        model = load_model(section)
        paths = []
        for number, rows in enumerate(sources):
            path = tmp_path_factory.mktemp("rows") / f"part{number}.jsonl"
            lines = [{"query": q, "positive": p, "negatives": n} for q, p, n in rows]
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
            paths.append(str(path))
        tokenizer, stops = load_tokenizer(section)
        given = form or {"method": "retrieval", "negatives": "negatives"}
        made = (
            Format(parse_choice(FORMATS, given))
            if form is None
            else FORMATS.get(form)(parse_choice(FORMATS, form))
        )
        renderer = Renderer(tokenizer, made, stops, max_length, too_long)
        held = (
            read_rows(Source(source=paths[0]), "eval")
            if len(paths) == 1
            else read_sources([MixedSource(source=path) for path in paths], "eval", 0)
        )
        return Subject(model, tokenizer, renderer, held, stops, pad_id(tokenizer, stops), 64)

    return get


def task(**settings):
    return Retrieval(parse_choice(TASKS, {"method": "retrieval", **settings}))


def embedding(subject, text):
    """Of a text by itself."""
    ids = [*subject.tokenizer(text)["input_ids"], subject.tokenizer.eos_token_id]
    whole = Batch(
        torch.tensor([ids]), torch.arange(len(ids))[None], ((0, 0, len(ids)),), torch.tensor([len(ids) - 1]),
        torch.zeros(1, dtype=torch.int64),
    )  # fmt: skip
    with torch.no_grad():
        return subject.model.embeddings(whole)[0].double()


def by_sorting(subject, rows, places=(1, 5, 15)):
    """The scores by their definition: every list sorted, every passage looked for in it."""
    passages = sorted({text for _, positive, hard in rows for text in (positive, *hard)})
    meant = {}
    for query, positive, _ in rows:
        meant.setdefault(query, set()).add(positive)
    vectors = {text: embedding(subject, text) for text in passages}
    found = {name: [] for name in [*(f"recall_at_{k}" for k in places), "mrr_at_10", "ndcg_at_10"]}
    for query, wanted in meant.items():
        asked = embedding(subject, query)
        order = sorted(passages, key=lambda text: -float(vectors[text] @ asked))
        hits = [text in wanted for text in order]
        for k in places:
            found[f"recall_at_{k}"].append(sum(hits[:k]) / len(wanted))
        found["mrr_at_10"].append(next((1 / (i + 1) for i, hit in enumerate(hits[:10]) if hit), 0.0))
        gain = sum(hit / math.log2(i + 2) for i, hit in enumerate(hits[:10]))
        best = sum(1 / math.log2(i + 2) for i in range(min(10, len(wanted))))
        found["ndcg_at_10"].append(gain / best)
    return found, len(passages)


def test_the_scores_are_those_of_a_sorted_list(subject_of):
    subject = subject_of(ROWS)
    expected, passages = by_sorting(subject, ROWS, (1, 2, 5, 15))
    result = task(at=[1, 2, 5, 15]).run(subject, None)
    assert result.n == 4 and result.metrics["passages"] == passages == 8
    for name, values in expected.items():
        assert result.metrics[name] == pytest.approx(statistics.fmean(values)), name
        error = statistics.stdev(values) / math.sqrt(len(values))
        assert result.metrics[f"{name}_stderr"] == pytest.approx(error), name
    assert [sample["correct"] for sample in result.samples] == [hit == 1 for hit in _first(subject)]


def _first(subject):
    return [sample["rank"] for sample in task().run(subject, None).samples]


def test_a_limit_is_of_rows_and_with_them_of_passages(subject_of):
    result = task().run(subject_of(ROWS), 2)
    assert result.n == 2 and result.metrics["passages"] == 4


def test_every_source_is_a_corpus_of_its_own(subject_of):
    subject = subject_of(ROWS[:3], ROWS[3:])
    result = task().run(subject, None)
    parts = [by_sorting(subject, rows) for rows in (ROWS[:3], ROWS[3:])]
    assert result.n == 5 and result.metrics["passages"] == sum(count for _, count in parts) == 8
    for name in ("recall_at_1", "mrr_at_10", "ndcg_at_10"):
        values = [value for found, _ in parts for value in found[name]]
        assert result.metrics[name] == pytest.approx(statistics.fmean(values))
        own = sorted(key for key in result.metrics if key.startswith(f"{name}/"))
        assert len(own) == 4 and sum(key.endswith("_stderr") for key in own) == 2
        scores = [result.metrics[key] for key in own if not key.endswith("_stderr")]
        assert sorted(scores) == pytest.approx(sorted(statistics.fmean(found[name]) for found, _ in parts))


def test_a_model_that_embeds_everything_alike_finds_nothing(subject_of, monkeypatch):
    subject = subject_of(ROWS)
    monkeypatch.setattr(
        type(subject.model), "embeddings", lambda self, batch: torch.ones(len(batch.documents), 4) / 2
    )
    result = task().run(subject, None)
    assert result.metrics["recall_at_1"] == result.metrics["recall_at_5"] == 0
    assert result.metrics["mrr_at_10"] < 0.2 and not any(sample["correct"] for sample in result.samples)


def test_an_embedding_that_is_no_number_is_refused(subject_of, monkeypatch):
    subject = subject_of(ROWS)
    bad = lambda self, batch: torch.full((len(batch.documents), 4), torch.nan)  # noqa: E731
    monkeypatch.setattr(type(subject.model), "embeddings", bad)
    with pytest.raises(NumericalError, match="is no finite number"):
        task().run(subject, None)


def test_rows_that_are_dropped_are_counted(subject_of):
    result = task().run(subject_of(ROWS, max_length=30, too_long="drop"), None)
    assert result.metrics["left_out"] > 0 and result.n < 4


def test_rows_of_another_kind_are_refused(subject_of):
    subject = subject_of(ROWS, form="text")
    with pytest.raises(DataError, match="the rows of the text format are no queries with passages"):
        task().run(subject, None)


def test_ranks_have_the_scores_of_their_definition():
    assert recall_at([2, 7], 1) == 0 and recall_at([2, 7], 5) == 0.5 and recall_at([2, 7], 7) == 1
    assert reciprocal_rank_at([4], 10) == 0.25 and reciprocal_rank_at([11], 10) == 0
    assert ndcg_at([1, 2], 10) == 1 and ndcg_at([11], 10) == 0
    assert ndcg_at([3], 10) == pytest.approx(0.5)
    assert ndcg_at([1, 3], 10) == pytest.approx((1 + 0.5) / (1 + 1 / math.log2(3)))
    draw = random.Random(0)
    values = [draw.random() for _ in range(9)]
    found = mean_of("x", values)
    assert found["x"] == pytest.approx(statistics.fmean(values))
    assert found["x_stderr"] == pytest.approx(statistics.stdev(values) / 3)
    assert math.isnan(mean_of("x", [1.0])["x_stderr"])
