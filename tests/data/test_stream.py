"""`stream`: the first rows of a hub data set, and nothing of it beyond them."""

from __future__ import annotations

import math

import datasets
import pytest

from lrft.data.sources import read_rows
from lrft.recipe.load import load_recipe
from lrft.registry.config import Source
from lrft.registry.errors import DataError, RecipeError

C4 = {"source": "allenai/c4", "name": "en", "split": "train"}


class Hub:
    """A data set of a thousand documents that counts the rows it was asked for."""

    def __init__(self) -> None:
        self.read = 0
        self.asked: dict = {}
        self.text = "document {}"

    def rows(self):
        for index in range(1000):
            self.read += 1
            yield {"text": self.text.format(index), "url": f"https://example.org/{index}"}

    def load_dataset(self, name, config, *, streaming, **asked):
        self.asked = {"name": name, "config": config, "streaming": streaming, **asked}
        assert streaming, "the whole set would be downloaded"
        return datasets.IterableDataset.from_generator(self.rows)


@pytest.fixture
def hub(monkeypatch):
    made = Hub()
    monkeypatch.setattr(datasets, "load_dataset", made.load_dataset)
    return made


def test_only_the_rows_that_are_wanted_are_read(hub):
    rows = read_rows(Source(**C4, stream=3), "train")
    assert [row["text"] for row in rows] == ["document 0", "document 1", "document 2"]
    assert hub.read <= 4  # one ahead, to know that there is more
    assert hub.asked == {
        "name": "allenai/c4",
        "config": "en",
        "split": "train",
        "revision": None,
        "streaming": True,
    }
    assert rows.where(1) == "allenai/c4:train row 1"


def test_a_limit_below_the_stream_reads_less(hub):
    assert len(read_rows(Source(**C4, stream=50, limit=2), "train")) == 2
    assert hub.read <= 3


def test_the_fingerprint_is_that_of_the_rows_read(hub):
    def fingerprint(stream: int) -> str:
        return read_rows(Source(**C4, stream=stream), "train").fingerprint

    first = fingerprint(3)
    assert fingerprint(3) == first
    assert fingerprint(4) != first
    hub.text = "changed {}"
    assert fingerprint(3) != first


def test_without_network_a_stream_is_refused_in_one_sentence(monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("Cannot reach the hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match=r"'allenai/c4'.*Cannot reach the hub.*A stream needs the network"):
        read_rows(Source(**C4, stream=3), "train")


def test_a_connection_lost_between_rows_is_a_data_error(monkeypatch):
    def rows():
        yield {"text": "one"}
        raise ConnectionError("lost")

    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, **__: datasets.IterableDataset.from_generator(rows)
    )
    with pytest.raises(DataError, match="lost"):
        read_rows(Source(**C4, stream=3), "train")


def test_a_local_file_is_not_streamed(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n')
    with pytest.raises(DataError, match=r"data\.train\.stream: .* is local"):
        read_rows(Source(source=str(path), stream=3), "train")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: {{name: x/y}}\ndata: {{train: {{source: {path}, stream: 3}}, format: text}}\n")
    with pytest.raises(RecipeError, match=r"data\.train\.stream: belongs to hub data sets"):
        load_recipe(recipe)


def test_another_source_does_not_inherit_the_stream(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n')
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: {name: x/y}\ndata: {train: {source: a/b, stream: 3}, format: text}\n")
    assert load_recipe(recipe, [f"data.train.source={path}"]).recipe.data.train.stream is None


@pytest.mark.parametrize("streams", [False, True])
def test_a_number_of_the_hub_that_is_none_is_refused_by_row_and_column(monkeypatch, streams):
    rows = [
        {"text": "a", "score": 1.5},
        {"text": "b", "score": float("nan")},
        {"text": "c", "score": -math.inf},
    ]
    whole = datasets.Dataset.from_list(rows)
    given = whole.to_iterable_dataset() if streams else whole
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: given)
    found = read_rows(Source(source="owner/rows", stream=3 if streams else None), "train")
    assert found[0]["score"] == 1.5
    assert found[1]["score"] is None  # all of a value: a gap, as in a Parquet file
    with pytest.raises(DataError, match=r"owner/rows:train row 2: column 'score' holds -inf"):
        found[2]
