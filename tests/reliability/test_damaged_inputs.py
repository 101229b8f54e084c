"""R5, what commands read beside a run: each file in some ways damaged, the same result or one sentence of it."""

from __future__ import annotations

import json

import pytest

from lrft.files.sums import MANIFEST, folder_manifest
from tests.reliability.damaged_inputs import ATTACKED, Case, Prepared, attack_all, try_case
from tests.reliability.full_disk import call

SHARE = 30  # cases of a command by `-m slow`


@pytest.fixture(scope="module")
def prepared(bench) -> Prepared:
    return Prepared(bench)


QUICK = [
    ("delta-apply", "difference/tokenizer/chat_template.jinja", "flip"),
    ("delta-apply", "difference/tokenizer/tokenizer_config.json", "half a pair"),
]


@pytest.mark.parametrize(("attack", "file", "kind"), QUICK)
def test_a_damaged_file_is_named(prepared, tmp_path, attack, file, kind):
    assert try_case(Case(attack, file, kind, 1), prepared, tmp_path) == ""


FELL = [
    *(("data-select", "few.jsonl", kind) for kind in ("pipe", "folder", "device", "huge")),
    *(("data-select", "few.losses.jsonl", kind) for kind in ("flip", "pipe", "huge", "swap")),
    *(("data-augment", "more.answers.jsonl", kind) for kind in ("flip", "odd types", "pipe", "deep", "huge")),
    *(("data-augment", "more.jsonl", kind) for kind in ("pipe", "folder")),
    *(("augment-prompt", "ask.txt", kind) for kind in ("pipe", "device", "huge")),
    *(("serve", "exported/adapter_model.safetensors", kind) for kind in ("zero tail", "flip")),
    *(("merge-add", "exported/adapter_model.safetensors", kind) for kind in ("zero tail", "flip")),
    ("serve-combined", "both/fidelity.json", "null"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("attack", "file", "kind"), FELL)
def test_what_fell_once_holds(prepared, tmp_path, attack, file, kind):
    assert [try_case(Case(attack, file, kind, seed), prepared, tmp_path) for seed in range(3)] == [""] * 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKED)
def test_the_inputs_of_every_command(prepared, tmp_path, name):
    found = attack_all(prepared, tmp_path, [name], SHARE, 1)
    assert found.failures == [] and found.held == found.tried > 0


def test_what_is_wrong_would_be_found(prepared, tmp_path, monkeypatch):
    """A reader that believes whatever is there."""
    monkeypatch.setattr("lrft.export.delta.folder_fault", lambda folder: "")
    case = Case("delta-apply", "difference/tokenizer/chat_template.jinja", "longer", 1)
    assert "another result, and nothing was said" in try_case(case, prepared, tmp_path)


def edited(folder, name, change) -> None:
    """As somebody who writes the sums anew."""
    record = json.loads((folder / name).read_text())
    change(record)
    (folder / name).write_text(json.dumps(record))
    (folder / MANIFEST).write_bytes(folder_manifest(folder))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda record: record.update(files={}), "delta.json: says nothing of delta.safetensors"),
        (lambda record: record.update(layers={"none": [[2, 2]]}), "says nothing of none"),
        (lambda record: record["layers"].update({key: [[2]] for key in record["layers"]}), "says nothing of"),
        (
            lambda record: record["layers"].update({key: [[77, 2]] for key in record["layers"]}),
            "delta.safetensors",
        ),
        (lambda record: record.update(rows=10**9), "delta.json"),
    ],
)
def test_a_record_of_differences_that_contradicts_itself_is_refused(prepared, tmp_path, change, said):
    place = prepared.place(("small", "base"), tmp_path)
    edited(place / "small", "delta.json", change)
    ended = call(place, ("delta", "apply", "small", "base", "--out", "out"))
    assert (ended.code, ended.raised) == (2, "") and said in ended.err, ended
    assert not (place / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("generator", {"method": "nobody"}),
        ("generator", {"method": "softmax_merge", "top": -1}),
        ("generator", {}),
        ("condition", [3]),
        ("condition", [-1]),
        ("shapes", {"a": [2, 2]}),
        ("shapes", {"a": [2, -2]}),
        ("tasks", {}),
        ("seed", -1),
        ("format", 9),
    ],
)
def test_a_generator_that_says_what_none_says_is_refused(prepared, tmp_path, key, value):
    place = prepared.place(("generator",), tmp_path)
    edited(place / "generator", "generator.json", lambda record: record.update({key: value}))
    ended = call(
        place, ("generate-adapter", "draw", "generator", "recipe.yaml", "--describe", "a", "--out", "out")
    )
    assert (ended.code, ended.raised) == (2, "") and "generator" in ended.err, ended
    assert not (place / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layers", "some"),
        ("temperature", float("inf")),
        ("prior_precision", 0.0),
        ("rows", -1),
        ("format", 9),
    ],
)
def test_a_posterior_that_says_what_none_says_is_refused(prepared, tmp_path, key, value):
    place = prepared.place(("choice",), tmp_path)
    edited(place / "choice" / "posterior", "posterior.json", lambda record: record.update({key: value}))
    ended = call(place, ("eval", "choice", "--posterior"))
    assert (ended.code, ended.raised) == (2, "") and "posterior.json" in ended.err, ended
