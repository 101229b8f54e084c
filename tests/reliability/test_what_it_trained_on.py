"""A run is what it trained on: what changes numbers is refused by name when it is resumed, scored or merged."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from lrft.api.asking.evaluate import evaluate
from lrft.api.merging.merge import merge
from lrft.api.training.train import train
from lrft.files.sums import MANIFEST, manifest_bytes
from lrft.recipe.load import load_recipe
from lrft.registry.errors import CheckpointError, UsageError
from lrft.training.folder import RUN
from tests.training.unbroken import cut_off

RECIPE = """
model: {{name: {base}, dtype: float32}}
adapter: {{method: lora, rank: 2}}
optimizer: {{method: adamw, lr: 0.003}}
data:
  train: {{source: {data}/train.jsonl, limit: 12}}
  eval: {{source: {data}/test.jsonl, limit: 2}}
  format: {{method: prompt_completion, render: chat}}
train: {{max_steps: 3, batch_size: 1, max_length: 160, save_every: 1, keep_last: 9, eval_every: 3, device: cpu}}
"""
ROWS = Path(__file__).parents[2] / "recipes" / "data" / "quickstart"


class Bench:
    """A recipe, its base and its rows in a folder of their own, and a run of it that was cut off after step 2."""

    def __init__(self, folder: Path) -> None:
        self.base, self.data, self.run = folder / "base", folder / "data", folder / "run"
        self.recipe = folder / "recipe.yaml"

    def resume(self, *overrides: str) -> None:
        train(load_recipe(self.recipe, list(overrides)), self.run, resume=True)

    def refused(self, match: str, *overrides: str) -> str:
        with pytest.raises(UsageError, match=match) as refusal:
            self.resume(*overrides)
        said = str(refusal.value)
        assert "cannot be resumed" in said and "--out" in said
        return said


@pytest.fixture(scope="module")
def trained(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    bench = Bench(folder)
    shutil.copytree(tiny(), bench.base)
    bench.data.mkdir()
    for name in ("train.jsonl", "test.jsonl"):
        shutil.copy(ROWS / name, bench.data)
    bench.recipe.write_text(RECIPE.format(base=bench.base, data=bench.data))
    train(load_recipe(bench.recipe), folder / "whole", resume=False)
    cut_off(folder / "whole", 2, bench.run)
    return folder


@pytest.fixture
def bench(trained: Path) -> Bench:
    """The files in the same place for every test, as a run knows its base by its path."""
    kept = trained.with_name(f"{trained.name}-kept")
    if not kept.exists():
        shutil.copytree(trained, kept)
    shutil.rmtree(trained)
    shutil.copytree(kept, trained)
    return Bench(trained)


def edit(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change a file in place; it has its size and its time of change as before."""
    before, content = path.stat(), path.read_bytes()
    changed = change(content)
    assert changed != content and len(changed) == len(content)
    with path.open("r+b") as file:
        file.write(changed)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def edit_config(bench: Bench, **keys: object) -> None:
    path = bench.base / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_unchanged_it_goes_on_to_the_same_bytes(bench):
    bench.resume()
    adapters = [
        (bench.run.parent / run / "adapter" / "adapter_model.safetensors").read_bytes()
        for run in ("run", "whole")
    ]
    assert adapters[0] == adapters[1]


def test_another_tokenizer_of_the_same_size_is_refused_by_its_part(bench):
    def swap(content: bytes) -> bytes:
        held = json.loads(content)
        merges = held["model"]["merges"]
        first, second = (" ".join(pair) if isinstance(pair, list) else pair for pair in merges[-2:])
        assert first != second
        merges[-2:] = merges[:-3:-1]
        return json.dumps(held, ensure_ascii=False).encode()

    path = bench.base / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()), ensure_ascii=False))
    edit(path, swap)
    said = bench.refused(r"the tokenizer of .*base \(its merges: \w{12} -> \w{12}\)")
    assert "its vocabulary" not in said


def test_another_chat_template_is_refused(bench):
    edit(bench.base / "chat_template.jinja", lambda text: text.replace(b"\n", b"\t"))
    bench.refused(r"the chat template of .*base \(sha256 \w{12} -> \w{12}\)")


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"rms_norm_eps": 0.001}, r"config.json of .*base \(rms_norm_eps: 1e-06 -> 0.001\)"),
        (
            {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
            r"rope_parameters.rope_theta: .* -> 500000.0",
        ),
    ],
)
def test_an_edited_configuration_is_refused_by_its_key(bench, keys, match):
    edit_config(bench, **keys)
    bench.refused(match)


@pytest.mark.slow
def test_who_wrote_the_configuration_changes_nothing(bench):
    edit_config(bench, transformers_version="4.0.0", _name_or_path="elsewhere")
    bench.resume()


def test_one_weight_in_the_middle_of_a_shard_is_refused_by_its_tensor(bench):
    name = "model.layers.1.mlp.down_proj.weight"
    flip_weight(bench, name)
    bench.refused(rf"the weights of model.name .*base \({name}, of \d+ tensors; sha256")


def test_rows_edited_at_equal_length_are_refused_by_their_file(bench):
    edit(bench.data / "train.jsonl", lambda text: text.replace(b"the", b"teh", 1))
    bench.refused(r"the rows of data.train \(.*train.jsonl: \w{12} -> \w{12}\)")


def test_rows_that_are_encoded_otherwise_from_the_same_file_are_refused_by_their_place(bench, monkeypatch):
    from lrft.build import identify
    from lrft.data.row_sums import record_rows

    def masked(rows):
        if len(rows) == 12:  # those of data.train
            rows[4].supervised[-1] ^= True
        return record_rows(rows)

    monkeypatch.setattr(identify, "record_rows", masked)
    bench.refused(r"the tokens and masks of data.train, first in row 4 \(sha256")


def test_a_template_file_that_changed_is_refused_by_its_key(bench, tiny):
    template = bench.recipe.with_name("own.jinja")
    template.write_text((tiny() / "chat_template.jinja").read_text())
    bench.run = bench.run.with_name("templated")
    given = [f"data.template={template}", "train.max_steps=1"]
    train(load_recipe(bench.recipe, given), bench.run, resume=False)
    template.write_text(template.read_text().replace("\n", "\t"))
    shutil.rmtree(bench.run / "adapter")
    bench.refused(r"data.template: from character \d+ on, .*\\n.* -> .*\\t", *given)


def test_a_base_replaced_at_the_same_path_is_refused(bench, tiny):
    tensors = load_file(bench.base / "model.safetensors")
    save_file({k: v.flip(0) for k, v in tensors.items()}, bench.base / "model.safetensors", {"format": "pt"})
    said = bench.refused(r"the weights of model.name .* and \d+ more, of \d+ tensors")
    assert "another base model" in said


def flip_weight(bench: Bench, name: str = "model.layers.1.mlp.down_proj.weight") -> None:
    """One bit of one value, between those that samples would look at."""
    shard = bench.base / "model.safetensors"
    header = int.from_bytes(shard.read_bytes()[:8], "little")
    start, end = json.loads(shard.read_bytes()[8 : 8 + header])[name]["data_offsets"]
    place = 8 + header + (start + end) // 2 // 4 * 4 + 4
    edit(shard, lambda content: content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])


def test_scores_and_merges_refuse_another_base_by_its_tensor(bench):
    flip_weight(bench)
    for use in (lambda: evaluate(bench.run), lambda: merge(bench.run, bench.run.with_name("merged"))):
        with pytest.raises(
            CheckpointError, match=r"step-2: the weights of model.name .*down_proj.weight, of \d+"
        ):
            use()
    assert not bench.run.with_name("merged").exists()
    assert not (bench.run / "eval").exists()


def test_scores_refuse_another_template_and_tell_other_rows(bench, capsys):
    rows = bench.data / "test.jsonl"
    rows.write_text(rows.read_text().replace("the", "teh", 1))
    evaluate(bench.run, limit=1)
    assert "the rows of data.eval (" in capsys.readouterr().err
    edit(bench.base / "chat_template.jinja", lambda text: text.replace(b"\n", b"\t"))
    with pytest.raises(CheckpointError, match=r"the chat template of .*base \(sha256"):
        evaluate(bench.run, limit=1)


def without_sums(bench: Bench) -> None:
    """The run as an older version left it."""
    (bench.run / MANIFEST).unlink()
    for path in (bench.run / RUN, *bench.run.glob("checkpoints/*/manifest.json")):
        held = json.loads(path.read_text())
        assert held.pop("trained_on")
        held.pop("versions")
        if path.name == MANIFEST:
            for key in ("sha256", "plan", "run", "decisive"):
                held.pop(key)
            held["format"] = 1
        path.write_text(json.dumps(held))


def test_an_older_run_goes_on_and_says_so_once(bench, capsys):
    without_sums(bench)
    bench.resume()
    said = [line for line in capsys.readouterr().err.splitlines() if "kept no sums" in line]
    assert len(said) == 1
    assert json.loads((bench.run / RUN).read_text())["trained_on"]["base"]["sha256"]


def test_an_older_run_still_refuses_what_it_could(bench):
    without_sums(bench)
    rows = bench.data / "train.jsonl"
    rows.write_text(rows.read_text() + "\n")
    bench.refused(r"the rows of data.train \(sha256 \w{12} -> \w{12}\)")


def test_a_checkpoint_of_other_versions_says_so_and_goes_on(bench, capsys):
    manifest = bench.run / "checkpoints" / "step-2" / "manifest.json"
    held = json.loads(manifest.read_text())
    assert {"python", "lrft", "torch", "transformers", "processor", "kernels"} <= held["versions"].keys()
    held["versions"] |= {"torch": "2.1.0", "python": "3.10.0", "kernels": "of another make"}
    manifest.write_bytes(manifest_bytes(held))
    bench.resume()
    said = [line for line in capsys.readouterr().err.splitlines() if "other versions" in line]
    assert len(said) == 1 and "step-2 was made under other versions (torch 2.1.0 -> " in said[0]
    assert "kernels of another make -> " in said[0]


@pytest.mark.slow
def test_a_tokenizer_that_other_versions_write_otherwise_is_told(bench, capsys):
    manifest = bench.run / "checkpoints" / "step-2" / "manifest.json"
    held = json.loads(manifest.read_text())
    held["versions"]["tokenizers"] = "0.1"
    held["trained_on"]["tokenizer"] = "0" * 64
    manifest.write_bytes(manifest_bytes(held))
    bench.resume()
    assert "or is only written otherwise by the versions installed now" in capsys.readouterr().err


def test_when_to_save_may_change_and_the_end_is_the_same(bench):
    bench.resume("train.save_every=3", "train.keep_last=1", "logging.every=1")
    assert [path.name for path in (bench.run / "checkpoints").iterdir()] == ["step-3"]
    files = [bench.run.parent / run / "adapter" / "adapter_model.safetensors" for run in ("run", "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_rows_that_are_scored_may_not_change_where_they_say_which_step_is_the_best(bench):
    bench.refused(r"eval.limit: None -> 1", "eval.limit=1")


def test_the_record_says_how_much_was_trained_on(bench):
    record = json.loads((bench.run / RUN).read_text())["trained_on"]
    rows = record["rows"]["train"]
    assert rows["rows"] == 12 and rows["tokens"] > rows["targets"] > 0
    assert list(record["files"]["train"]) == [str(bench.data / "train.jsonl")]


def test_a_report_says_what_it_scored_and_what_it_replaces(bench, capsys):
    evaluate(bench.run)
    capsys.readouterr()
    evaluate(bench.run)
    assert "replaces" not in capsys.readouterr().err
    subject = json.loads((bench.run / "eval" / "adapter.json").read_text())["subject"]
    assert subject["checkpoint"] == "step-2" and subject["limit"] is None
    assert {"base", "config", "tokenizer", "template"} == subject["scored_with"].keys()
    evaluate(bench.run, limit=1)
    said = capsys.readouterr().err
    assert (
        "eval/adapter.json replaces scores that were taken otherwise (limit: none -> 1; loss n: 2 -> 1"
        in said
    )


@pytest.mark.slow
def test_a_report_that_cannot_be_read_or_gave_other_numbers_is_told(bench, capsys):
    evaluate(bench.run, limit=1)
    report = bench.run / "eval" / "adapter.json"
    held = json.loads(report.read_text())
    held["tasks"]["loss"]["metrics"]["loss"] += 1
    report.write_text(json.dumps(held))
    evaluate(bench.run, limit=1)
    assert "the same was scored before, and gave other numbers (loss.loss: " in capsys.readouterr().err
    report.write_text("{")
    evaluate(bench.run, limit=1)
    assert "the earlier report cannot be read, and is replaced" in capsys.readouterr().err
    assert json.loads(report.read_text())["subject"]["checkpoint"] == "step-2"
