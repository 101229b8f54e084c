"""`lrft doctor`: whole folders pass, and whatever a server would take otherwise than training did is found."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path

import pytest
from gguf import GGUFReader
from safetensors.torch import load_file, save_file

from lrft.api.asking.doctor import diagnose, judge
from lrft.api.exporting.export import export
from lrft.api.exporting.form import Options
from lrft.api.merging.merge import merge
from lrft.export.peft_keys import known_keys
from lrft.registry.errors import CheckpointError, UsageError
from lrft.training.folder import RunFolder
from tests.export.exported_runs import trained

FORMS = {
    "vllm": ("vllm", Options()),
    "lora": ("lora", Options()),
    "gguf": ("gguf", Options(merged=True)),
    "ollama": ("ollama", Options(merged=True)),
    "on": ("ollama", Options(base="llama3.2")),
}


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("runs"), tiny("llama"), "adapter: {method: lora, rank: 4}")


@pytest.fixture(scope="module")
def written(run, tmp_path_factory):
    """`written(form, folder)` -> a copy of the run in this form."""
    made: dict[str, Path] = {}

    def get(form: str, folder: Path) -> Path:
        if form not in made:
            target, options = FORMS[form]
            made[form] = tmp_path_factory.mktemp("exports") / form
            export(run, target, made[form], options)
        return Path(shutil.copytree(made[form], folder / form))

    return get


def failed(folder: Path) -> list[str]:
    return [f"{one['check']}: {one['found']}" for one in diagnose(folder)["checks"] if not one["passed"]]


def unsummed(folder: Path) -> None:
    """Let the record know no sums, so that only what the files say is looked at."""
    record = json.loads((folder / "fidelity.json").read_text())
    (folder / "fidelity.json").write_text(json.dumps({**record, "files": {}}))


@pytest.mark.parametrize("form", FORMS)
def test_an_exported_folder_passes_and_says_how_it_is_served(written, tmp_path, form):
    found = diagnose(written(form, tmp_path))
    assert failed(tmp_path / form) == [] and len(found["checks"]) > 3
    judge(found)
    assert any(one["check"].startswith("generation_config.json's stops") for one in found["checks"]) == (
        form in ("lora", "vllm")
    )
    served = {"vllm": "vllm serve", "lora": "peft: ", "gguf": "llama-server -m", "ollama": "ollama create"}
    assert found["next"][0].startswith(served.get(form, "ollama create"))
    base = (
        json.loads((tmp_path / form / "adapter_config.json").read_text()) if form in ("lora", "vllm") else {}
    )
    assert base.get("base_model_name_or_path", "") in found["next"][0]  # it is on this machine
    conversations = [
        one for one in found["checks"] if "that of training" in one["check"] or "those of" in one["check"]
    ]
    assert len(conversations) == {"gguf": 2, "ollama": 4, "on": 2}.get(form, 2)


@pytest.mark.parametrize("form", ["lora", "vllm", "gguf"])
@pytest.mark.parametrize("damage", ["torn", "a pipe"])
def test_a_damaged_record_is_named_and_not_taken_as_missing(written, tmp_path, form, damage):
    record = written(form, tmp_path) / "fidelity.json"
    text = record.read_text()
    record.unlink()
    record.write_text(text[:40]) if damage == "torn" else os.mkfifo(record)
    assert any("fidelity.json" in one for one in failed(tmp_path / form))


def test_a_run_folder_passes_and_a_damaged_checkpoint_does_not(run, tmp_path):
    found = diagnose(run)
    assert [one for one in found["checks"] if not one["passed"]] == [] and found["kind"] == "run"
    assert any(line.startswith("lrft export") for line in found["next"])
    assert any("names its base by a path" in note for note in found["told"])
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    with (copy / "checkpoints" / "step-3" / "optimizer.safetensors").open("ab") as file:
        file.write(b"x")
    (line,) = failed(copy)
    assert line.startswith("1 checkpoints are whole: step-3: optimizer.safetensors is damaged (")
    assert "longer than the" in line
    with pytest.raises(CheckpointError, match="1 of 6 checks failed; 1 checkpoints are whole"):
        judge(diagnose(copy))


@pytest.mark.parametrize(
    ("family", "more"),
    [("gpt2", ""), ("llama", "trainable: ['*norm.weight']"), ("mixtral", "experts")],
)
def test_what_no_server_takes_is_not_what_to_type_next(tiny, tmp_path, family, more):
    model = f"{tiny(family)}, experts: split" if more == "experts" else tiny(family)
    folder = trained(
        tmp_path / "run", model, f"adapter: {{method: lora, rank: 4}}\n{more.removeprefix('experts')}"
    )
    assert [line.split()[1] for line in diagnose(folder)["next"]] == ["eval", "merge"]
    with pytest.raises(UsageError):
        export(folder, "vllm", tmp_path / "out", Options())


def test_a_name_with_spaces_is_one_word_of_the_next_command(run, tmp_path):
    folder = Path(shutil.copytree(run, tmp_path / "my first run"))
    for line in diagnose(folder)["next"]:
        assert str(folder) in shlex.split(line)
    (folder / "checkpoints/step-3/state.json").write_text("{}")
    then = [shlex.split(line) for line in diagnose(folder)["next"]]
    assert then and all(any(str(folder) in word for word in line) for line in then)


def test_a_merged_folder_passes_until_a_file_is_cut(run, tmp_path, monkeypatch):
    monkeypatch.setattr("lrft.api.opening.stopping.NEW_TOKENS", 4)
    merge(RunFolder(run), tmp_path / "merged")
    assert failed(tmp_path / "merged") == []
    asked = [one["check"] for one in diagnose(tmp_path / "merged")["checks"]]
    assert "the tokenizer's tokens of the conversation are those of training" in asked
    file = tmp_path / "merged" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert failed(tmp_path / "merged")[0].startswith("1 files of tensors open: model.safetensors")


@pytest.fixture(scope="module")
def dense(run, tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lrft.api.opening.stopping.NEW_TOKENS", 4)
        out = tmp_path_factory.mktemp("merged") / "dense"
        merge(RunFolder(run), out)
        return out


def test_another_template_and_another_stop_in_a_merged_folder_are_found(dense, tmp_path):
    folder = Path(shutil.copytree(dense, tmp_path / "dense"))
    template, settings = folder / "chat_template.jinja", folder / "generation_config.json"
    template.write_text(template.read_text().replace("<|im_end|>", "<|im_end|> "))
    said = json.loads(settings.read_text())
    settings.write_text(json.dumps({**said, "eos_token_id": [said["eos_token_id"], 9]}))
    files, *lines = failed(folder)
    assert "chat_template.jinja is not what was written, generation_config.json is not" in files
    unsummed(folder)
    assert failed(folder) == lines
    tokens, stops = lines
    assert tokens.startswith("the tokenizer's tokens of the conversation are those of training: token ")
    assert stops.startswith("generation_config.json's stops are those of training: <|im_end|>, ")


def test_a_model_without_a_record_is_not_called_faithful(dense, tmp_path):
    folder = Path(shutil.copytree(dense, tmp_path / "dense"))
    (folder / "fidelity.json").unlink()
    found = diagnose(folder)
    assert found["kind"] == "model" and len(found["checks"]) == 2
    assert any("nothing says what it was made from" in line for line in found["told"])


def test_what_an_adapter_needs_of_its_base_is_told_wherever_it_is_written(tiny, tmp_path):
    model = f"{tiny('llama')}, rope_scaling: {{type: yarn, factor: 2}}, add_tokens: [zurichsee]"
    folder = trained(tmp_path / "odd", model, "adapter: {method: lora, rank: 4}")
    found = diagnose(folder)
    needs = "the base has to be loaded with rope scaling yarn by 2, as in training"
    assert needs in found["told"] and not any("lrft export" in line for line in found["next"])
    rows = "a base with fewer rows than 513 takes `model.resize_token_embeddings(513, mean_resizing=False)`"
    told = export(folder, "peft", tmp_path / "peft", Options())["told"]
    assert needs in told and any(line.startswith(rows) for line in told)
    card = (tmp_path / "peft" / "README.md").read_text()
    assert f"- {needs}\n" in card and f"- {rows}" in card and "not measured" not in card
    assert {*told} <= {*diagnose(tmp_path / "peft")["told"]}


def test_a_file_that_was_changed_or_lost_is_named(written, tmp_path):
    folder = written("lora", tmp_path)
    (folder / "README.md").write_text("other")
    (folder / "generation_config.json").unlink()
    (line,) = failed(folder)
    assert "README.md is not what was written" in line and "generation_config.json is missing" in line


def test_another_chat_template_in_the_folder_is_found_by_its_tokens(written, tmp_path):
    folder = written("vllm", tmp_path)
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_end|>", "<|im_end|> "))
    unsummed(folder)
    (line,) = failed(folder)
    assert line.startswith("the tokenizer's tokens of the conversation are those of training: token ")


def test_another_prompt_or_stop_in_the_modelfile_is_found(written, tmp_path):
    for form in ("ollama", "on"):
        folder = written(form, tmp_path)
        file = folder / "Modelfile"
        file.write_text(
            file.read_text()
            .replace("assistant\n", "assistant:\n")
            .replace('PARAMETER stop "<|im', 'PARAMETER stop "<|')
        )
        unsummed(folder)
        prompt, stops = failed(folder)
        assert prompt.startswith("the Modelfile's prompt is that of training: ")
        assert stops == "the Modelfile's stops are those of training: <|_end|> and not <|im_end|>"


def test_a_gguf_file_that_splits_text_otherwise_is_found(written, tmp_path):
    folder = written("gguf", tmp_path)
    file = folder / "model.gguf"
    reader = GGUFReader(file, "r+")
    pre = reader.fields["tokenizer.ggml.pre"]
    assert bytes(pre.parts[pre.data[0]]) == b"gpt-2"
    pre.parts[pre.data[0]][:] = list(b"qwen2")  # one digit at a time, punctuation with line ends
    reader.data.flush()
    unsummed(folder)
    (line,) = failed(folder)
    assert line.startswith("the GGUF file's tokens of the conversation are those of training: token")


def test_a_number_that_is_none_a_foreign_key_and_a_wrong_rank_are_found(written, tmp_path):
    folder = written("lora", tmp_path)
    tensors = load_file(folder / "adapter_model.safetensors")
    name = next(name for name in tensors if "q_proj.lora_A" in name)
    tensors[name] = tensors[name][:2] * float("nan")
    save_file(tensors, folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "use_lrft": True}))
    unsummed(folder)
    lines = failed(folder)
    assert any(line.startswith(f"every number is finite: {name}") for line in lines)
    assert any("it does not know use_lrft" in line for line in lines)
    assert any(
        line.startswith("every rank is that of the configuration: not of model.layers.0") for line in lines
    )


@pytest.mark.parametrize("kind", ["LORA", "VERA", "OFT", "PREFIX_TUNING"])
def test_the_keys_read_from_pefts_source_are_those_of_its_class(kind):
    import dataclasses

    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    _, keys = known_keys(kind)
    assert keys == {field.name for field in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[kind])}


def test_any_other_folder_is_refused(tmp_path):
    with pytest.raises(UsageError, match="is no run folder, no adapter"):
        diagnose(tmp_path)
