"""A merge that goes tensor by tensor writes the bytes of one of the whole model, and never holds that."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lrft.api.merging.merge import Merge, merge
from lrft.api.training.train import train
from lrft.files import tensors_written
from lrft.files.failure import WriteError
from lrft.files.tensors_written import lay_out
from lrft.model import asked, on_call
from lrft.model.layout import NAMES, Layout, hollow, write_tensor
from lrft.model.load import open_model
from lrft.model.stored import NotStreamed
from lrft.recipe.load import load_recipe
from lrft.registry.errors import Interrupted
from lrft.training.folder import RunFolder
from tests.reliability.struck import struck
from tests.wide_llama import dense_bytes, write_wide_llama

pytestmark = pytest.mark.usefixtures("short_answers")
DATA = Path(__file__).parents[2] / "recipes" / "data" / "quickstart"
RECIPE = """
model: {{name: {model}, dtype: {dtype}{model_more}}}
{body}
data:
  train: {{source: {data}/train.jsonl, limit: 4}}
  eval: {{source: {data}/test.jsonl, limit: 2}}
  format: {{method: prompt_completion, render: chat}}
train: {{max_steps: 1, batch_size: 2, max_length: 160, device: cpu}}
optimizer: {{method: adamw, lr: 0.01}}
export: {{tolerance: 9, shard_size: {shard}}}
"""
LORA = "adapter: {method: lora, rank: 4}"
NF4 = f"{LORA}\nquantization: nf4"


@pytest.fixture
def trained(tmp_path):
    def make(model, body=NF4, dtype="bfloat16", model_more="", shard="100KB") -> RunFolder:
        said = {"body": body, "dtype": dtype, "model_more": model_more, "shard": shard}
        (tmp_path / "recipe.yaml").write_text(RECIPE.format(model=model, data=DATA, **said))
        train(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "run", resume=False)
        return RunFolder(tmp_path / "run")

    return make


def both(run, tmp_path, monkeypatch, streams=True, **options) -> Path:
    """Merge as a whole and streamed; see that every file is the same, and what was loaded as a whole."""
    merge(run, tmp_path / "whole", **options)
    loaded = []
    load = Merge._load
    with monkeypatch.context() as patch:
        patch.setattr(asked, "SMALL", 0)
        patch.setattr(Merge, "_load", lambda self, section: loaded.append(section) or load(self, section))
        merge(run, tmp_path / "streamed", **options)
    assert (loaded == []) == streams
    names = {path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*")}
    assert names == {path.relative_to(tmp_path / "streamed") for path in (tmp_path / "streamed").rglob("*")}
    for name in names:
        one, other = (tmp_path / folder / name for folder in ("whole", "streamed"))
        assert one.read_bytes() == other.read_bytes(), name
    return tmp_path / "streamed"


CASES = {
    "tied, in shards": ({}, {}, {}),
    "a head of its own, biases": ({"tied": False, "family": "qwen2"}, {}, {}),
    "transposed": ({"family": "gpt2"}, {"body": LORA, "dtype": "float32"}, {"dtype": "bfloat16"}),
    "onto the original": ({}, {"dtype": "float32"}, {"onto": "original", "dtype": "float16"}),
    "feedback": ({}, {}, {"rounding": "feedback"}),
    "nearest": ({"family": "gemma2"}, {}, {"rounding": "nearest"}),
    "all in float32": ({}, {"body": "adapter: null\ntrainable: full", "shard": "1GB"}, {"dtype": "float32"}),
    "new tokens": ({}, {"model_more": ", add_tokens: {plain: [zyx, wvu]}, resize: 8"}, {}),
    "new tokens, a head of its own": (
        {"tied": False},
        {"model_more": ", add_tokens: {plain: [zyx]}", "dtype": "float32"},
        {"rounding": "feedback", "dtype": "float16"},
    ),
    "norms that train": (
        {"family": "phi3"},
        {"body": f"{NF4}\ntrainable: ['*norm.weight', '*embed_tokens.weight']"},
        {},
    ),
    "an embedding with an adapter": ({}, {"body": "adapter: {method: trainable_tokens, ids: [5, 6]}"}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_every_file_is_that_of_the_whole_model(tiny, trained, tmp_path, monkeypatch, case):
    model, recipe, options = CASES[case]
    found = both(trained(tiny(**model), **recipe), tmp_path, monkeypatch, **options)
    shards = sorted(found.glob("*.safetensors"))
    assert (len(shards) > 2) == ("shard" not in recipe)


def test_layers_in_four_bits_are_decoded_one_after_another(tiny, trained, tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    hf = AutoModelForCausalLM.from_pretrained(tiny(), quantization_config=four)
    hf.save_pretrained(tmp_path / "packed")
    AutoTokenizer.from_pretrained(tiny()).save_pretrained(tmp_path / "packed")
    both(trained(tmp_path / "packed"), tmp_path, monkeypatch)


def test_what_transformers_would_not_write_as_it_is_is_merged_as_a_whole_and_said(
    tiny, trained, tmp_path, monkeypatch, capsys
):
    from transformers import modeling_utils

    run, save = trained(tiny()), modeling_utils.safe_save_file
    altered = {"revert_weight_conversion": lambda model, held: {k: t.clone() for k, t in held.items()}}
    monkeypatch.setattr(modeling_utils, "revert_weight_conversion", altered["revert_weight_conversion"])
    capsys.readouterr()
    both(run, tmp_path, monkeypatch, streams=False)
    said = capsys.readouterr().err
    assert said.count("the dense model is in memory as a whole (") == 1
    assert "is made of other tensors of the model)" in said
    assert modeling_utils.safe_save_file is save


def test_experts_that_become_one_tensor_are_merged_as_a_whole(tiny, trained, tmp_path, monkeypatch):
    body = "adapter: {method: lora, rank: 4, targets: [q_proj, v_proj]}"
    both(trained(tiny("mixtral"), body), tmp_path, monkeypatch, streams=False)


@pytest.mark.parametrize("nth", [1, 9])
def test_a_disk_that_fills_up_leaves_nothing(tiny, trained, tmp_path, monkeypatch, nth):
    run, calls, write = trained(tiny()), [], tensors_written.write_all

    def full(descriptor, data):
        calls.append(len(data))
        if len(calls) >= nth:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(descriptor, data)

    monkeypatch.setattr(asked, "SMALL", 0)
    monkeypatch.setattr(tensors_written, "write_all", full)
    before = set(tmp_path.iterdir())
    with pytest.raises(WriteError, match=r"out: could not be written \(No space left"):
        merge(run, tmp_path / "out")
    assert len(calls) == nth and set(tmp_path.iterdir()) == before


def test_a_signal_between_two_tensors_leaves_nothing(tiny, trained, tmp_path, monkeypatch):
    run = trained(tiny())
    monkeypatch.setattr(asked, "SMALL", 0)
    before = set(tmp_path.iterdir())
    with struck("_fill", signal.SIGTERM, 5) as blow, pytest.raises(Interrupted, match="is as it was"):
        merge(run, tmp_path / "out")
    assert blow.fell and set(tmp_path.iterdir()) == before


def test_drawn_weights_are_merged_as_a_whole(tiny, trained, tmp_path, monkeypatch):
    run = trained(tiny(), model_more=", weights: random")
    both(run, tmp_path, monkeypatch, streams=False)


def test_a_file_that_is_laid_out_and_filled_is_the_librarys(tmp_path):
    tensors = {
        f'{name}."é{number}': (torch.arange(number + 3).view(1, -1) % 2).to(dtype)
        for number, dtype in enumerate(NAMES)
        for name in ("b", "a.10", "a.2")
    }
    tensors |= {"number": torch.tensor(2.0), "empty": torch.empty(0, 4)}
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    shapes = {name: (NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()}
    for name, place in lay_out(tmp_path / "ours", shapes, {"format": "pt"}).items():
        write_tensor(place, tensors[name])
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


@pytest.fixture
def promised(tiny, trained, monkeypatch):
    monkeypatch.setattr(asked, "SMALL", 0)
    section = load_recipe_section(tiny("gpt2", tied=False))
    return lambda: open_model(section)


def load_recipe_section(folder):
    from lrft.recipe.sections import ModelSection

    return ModelSection(name=str(folder), dtype="float32")


def test_layers_read_on_call_answer_as_those_that_are_held_and_hold_nothing(promised, monkeypatch):
    ids = torch.arange(3, 20)[None]
    found = []
    for fits in (False, True):
        model = promised()
        names = set(on_call.waiting(model.hf))
        monkeypatch.setattr(on_call, "fits", lambda size, device, answer=fits: answer)
        on_call.read_on_call(model, torch.device("cpu"))
        held = {name for name, _ in model.hf.named_parameters()} & names
        assert (held == names) if fits else not held
        with torch.no_grad():
            found.append(model.hf(input_ids=ids).logits)
        assert {name for name, _ in model.hf.named_parameters()} & names == held
    assert torch.equal(*found)


def test_a_model_shares_only_what_has_its_values(promised):
    model, like = promised(), promised()
    norm = "transformer.ln_f.weight"
    like.hf.get_parameter(norm).data = like.hf.get_parameter(norm) + 1
    on_call.share(model, like)
    embedding = [one.hf.get_input_embeddings().weight for one in (model, like)]
    assert embedding[0].data_ptr() == embedding[1].data_ptr()
    assert float(model.hf.get_parameter(norm)[0]) + 1 == float(like.hf.get_parameter(norm)[0])


def test_a_layout_that_lacks_a_parameter_is_none(promised, tmp_path):
    model = promised()
    hollow(model.hf, torch.float16)
    layout = Layout(model.hf)
    with pytest.raises(NotStreamed, match="does not write"), layout.saving():
        pass
    held = dict(layout.held)
    with pytest.raises(NotStreamed, match="does not write"), layout.saving():
        model.hf.save_pretrained(
            tmp_path / "torn", state_dict={k: t for k, t in held.items() if "wte" not in k}
        )
    assert not list((tmp_path / "torn").glob("*.safetensors"))
    layout.places.clear()
    with layout.saving():
        model.hf.save_pretrained(tmp_path, state_dict=layout.held)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"F16"}  # noqa: SIM118


MEASURED = """
import gc, re, sys
from pathlib import Path
import torch
from lrft.api.merging import merge as api
from lrft.api.merging import streamed as merge_streamed
from lrft.model import asked, heap
from lrft.model.stored import NotStreamed
from lrft.registry.errors import Interrupted
from lrft.training.folder import RunFolder
from tests.reliability.struck import struck

def now(what):
    return int(re.search(what + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10

run, out, kind, before = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], {}

def opened(*given, inner=api.opened):
    found = inner(*given)
    gc.collect()
    heap.give_back()
    Path("/proc/self/clear_refs").write_text("5")
    before["held"] = now("VmRSS")
    return found

def refuse(*given):
    raise NotStreamed("")

api.opened = opened
asked.SMALL = 0
if kind == "whole":
    merge_streamed.open_model = refuse
api.merge(RunFolder(run), out)
print(now("VmHWM") - before["held"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("width", "layers"),
    [
        pytest.param(512, 30, marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
        pytest.param(2048, 28, marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
    ],
)
def test_a_merge_takes_one_dense_tensor_at_work_beside_the_runs_model(tiny, trained, tmp_path, width, layers):
    """Slack: eight dense tensors in bfloat16 and eight in float32, 0.6 MB of objects a layer, and 32 MiB."""
    from transformers import AutoTokenizer

    dense = dense_bytes(width, layers)
    write_wide_llama(tmp_path / "model", width, layers, positions=256, files=8, room=4)
    AutoTokenizer.from_pretrained(tiny()).save_pretrained(tmp_path / "model")
    run = trained(tmp_path / "model", shard=f"{dense // 8 >> 20}MB")
    peaks = {}
    for kind in ("streamed", "whole"):
        words = [sys.executable, "-c", MEASURED, str(run.path), str(tmp_path / kind), kind]
        env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed goes back, and is not counted
        done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        peaks[kind] = int(done.stdout.split()[-1])
    assert len(list((tmp_path / "streamed").glob("*.safetensors"))) > 6
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "streamed" / path.name).read_bytes(), path.name
    bound = 8 * (2 + 4) * 3 * width**2 + layers * 600_000 + (32 << 20)
    assert bound < dense / 1.5 and peaks["whole"] > dense
    assert peaks["streamed"] < bound, f"{peaks['streamed'] >> 20} MiB over {bound >> 20}"
