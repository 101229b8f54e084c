"""`lrft delta`: what fine-tuning added is taken off, moved to another base, and kept in mixed bits."""

from __future__ import annotations

import json
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from lrft.api.delta.compress import compress
from lrft.api.delta.diff import apply, diff
from lrft.export import mixed_bits
from lrft.export.delta import held_of
from lrft.export.delta_held import Held
from lrft.model import asked
from lrft.model.load import load_model
from lrft.model.stored import Stored
from lrft.recipe.load import load_recipe
from lrft.recipe.resolved import resolved
from lrft.recipe.sections import ModelSection
from lrft.registry.errors import DamagedFile, UsageError

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke"


def weights(folder):
    model = load_model(ModelSection(name=str(folder), dtype="float32"))
    return {name: parameter.detach() for name, parameter in model.hf.named_parameters()}


@pytest.fixture(scope="module")
def models(tiny, tmp_path_factory):
    """A base, the same tuned with two tokens more, and a newer base: folders."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = tmp_path_factory.mktemp("models")
    tokenizer = AutoTokenizer.from_pretrained(tiny())
    base = AutoModelForCausalLM.from_pretrained(tiny(), dtype=torch.float32)
    torch.manual_seed(0)
    for name, more in (("newer", 0), ("tuned", 2)):
        model = AutoModelForCausalLM.from_pretrained(tiny(), dtype=torch.float32)
        if more:
            tokenizer.add_tokens([f"<new {number}>" for number in range(more)])
            model.resize_token_embeddings(base.config.vocab_size + more)
        for parameter in model.parameters():
            shape = parameter.shape
            low = (
                torch.randn(shape[0], 2) @ torch.randn(2, shape[-1])
                if parameter.ndim == 2
                else torch.randn(shape)
            )
            parameter.data += 0.02 * low
        model.save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)
    AutoTokenizer.from_pretrained(tiny()).save_pretrained(place / "newer")
    return tiny(), place / "tuned", place / "newer"


def test_a_difference_is_added_to_another_base_and_gives_back_the_tuned_model_on_its_own(models, tmp_path):
    base, tuned, newer = models
    record = diff(base, tuned, tmp_path / "delta")
    assert record["changed"] == len(record["shapes"]) and 0 < record["relative_change"] < 10
    apply(tmp_path / "delta", base, tmp_path / "back", dtype="float32")
    back, wanted = weights(tmp_path / "back"), weights(tuned)
    assert all(torch.equal(back[name], wanted[name]) for name in wanted)
    found = apply(tmp_path / "delta", newer, tmp_path / "moved", weight=0.5, dtype="float32")
    assert "keeps its own configuration" in found["told"][0]
    moved, old, new = weights(tmp_path / "moved"), weights(base), weights(newer)
    name = "model.layers.0.mlp.up_proj.weight"
    torch.testing.assert_close(moved[name], new[name] + 0.5 * (wanted[name] - old[name]))
    rows = len(old["model.embed_tokens.weight"])
    torch.testing.assert_close(  # rows of new tokens are what is added to them
        moved["model.embed_tokens.weight"][rows:], 0.5 * wanted["model.embed_tokens.weight"][rows:]
    )
    from transformers import AutoTokenizer

    assert "<new 1>" in AutoTokenizer.from_pretrained(tmp_path / "moved").get_vocab()


def alive(monkeypatch, kind, method):
    """A list that grows by how many tensors that a method gave are still somebody's, whenever it gives one."""
    given, counts, before = [], [], getattr(kind, method)

    def watched(self, *arguments):
        found = before(self, *arguments)
        given.append(weakref.ref(found))
        counts.append(sum(one() is not None for one in given))
        return found

    monkeypatch.setattr(kind, method, watched)
    return counts


def test_matrices_are_read_one_by_one_and_let_go(models, tmp_path, monkeypatch):
    """Neither model is ever whole in memory, nor are the differences beside the model that they are added to."""
    base, tuned, _ = models
    whole = diff(base, tuned, tmp_path / "whole")
    monkeypatch.setattr(asked, "SMALL", 0)
    read = alive(monkeypatch, Stored, "read")
    assert diff(base, tuned, tmp_path / "streamed") == whole
    matrices = [name for name in whole["shapes"] if name.endswith("proj.weight")]
    assert len(read) == 2 * len(matrices) == 28 and max(read) <= 4
    for name in ("delta.safetensors", "delta.json"):
        assert (tmp_path / "streamed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    added = alive(monkeypatch, Held, "__getitem__")
    apply(tmp_path / "streamed", base, tmp_path / "back", dtype="float32")
    assert len(added) == whole["changed"] and max(added) <= 2


def test_models_alike_differ_by_nothing_and_others_are_refused(models, given_adapters, tiny, tmp_path):
    base, tuned, _ = models
    assert diff(base, base, tmp_path / "none")["changed"] == 0
    assert not load_file(tmp_path / "none" / "delta.safetensors")
    with pytest.raises(UsageError, match="one model has it and the other not"):
        diff(base, tiny("llama", tied=False), tmp_path / "a")
    with pytest.raises(UsageError, match=r"is a run; `lrft merge"):
        diff(base, given_adapters()[0], tmp_path / "a")
    diff(base, tuned, tmp_path / "delta")
    with pytest.raises(UsageError, match="its tokens are not those of"):
        apply(tmp_path / "delta", tuned, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    tensors = tmp_path / "delta" / "delta.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedFile, match=r"delta\.safetensors"):
        apply(tmp_path / "delta", base, tmp_path / "a")


def test_layers_are_compressed_against_their_inputs_and_the_rest_stays_as_it_is(models, tmp_path):
    base, tuned, _ = models
    diff(base, tuned, tmp_path / "delta")
    small = ["data.train.limit=20", "data.eval.limit=4", "train.device=cpu"]
    (tmp_path / "recipe.yaml").write_text(
        resolved(load_recipe(SMOKE / "lora.yaml", [f"model.name={base}", *small]).recipe)
    )
    groups = [(8, 1), (3, 2)]
    records = [
        compress(tmp_path / "delta", tmp_path / name, groups=groups, recipe=recipe)
        for name, recipe in (("measured", tmp_path / "recipe.yaml"), ("nearest", None))
    ]
    measured, nearest = records
    assert len(measured["layers"]) == 14 and measured["layers"].keys() == nearest["layers"].keys()
    assert measured["calibration_rows"] == 20 and measured["kl_mean"] < 0.05
    assert 0 < measured["relative_error"] < 0.5 and "rounded to nearest" in nearest["told"][0]
    size = sum(
        t.numel() * t.itemsize
        for n, t in load_file(tmp_path / "measured" / "delta.safetensors").items()
        if "::" in n
    )
    assert measured["bytes"] == size < measured["bytes_in_16_bits"] / 2
    apply(tmp_path / "measured", base, tmp_path / "out", dtype="float32")
    out, wanted, old = weights(tmp_path / "out"), weights(tuned), weights(base)
    assert torch.equal(out["model.norm.weight"], wanted["model.norm.weight"])
    lost = total = 0.0
    for name in measured["layers"]:
        lost += float((out[name] - wanted[name]).square().sum())
        total += float((wanted[name] - old[name]).square().sum())
    assert (lost / total) ** 0.5 == pytest.approx(measured["relative_error"], rel=1e-3)
    with pytest.raises(UsageError, match="is compressed already"):
        compress(tmp_path / "measured", tmp_path / "again")
    assert json.loads((tmp_path / "measured" / "delta.json").read_text())["ratio"] == 0


def test_a_budget_is_kept_by_every_layer(models, tmp_path):
    base, tuned, _ = models
    diff(base, tuned, tmp_path / "delta")
    record = compress(tmp_path / "delta", tmp_path / "small", ratio=1 / 4)
    for name, groups in record["layers"].items():
        rows, columns = record["shapes"][name]
        assert (rows + columns) * sum(bits * count for bits, count in groups) <= 4 * rows * columns


def test_compressing_goes_tensor_by_tensor_and_writes_what_it_would_of_all_at_once(
    models, tmp_path, monkeypatch
):
    base, tuned, _ = models
    diff(base, tuned, tmp_path / "delta")
    wanted = {}
    for name, change in load_file(tmp_path / "delta" / "delta.safetensors").items():
        inside = change.ndim == 2 and ".layers." in name
        groups = mixed_bits.compress(change, mixed_bits.budget(*change.shape, 1 / 4)) if inside else []
        wanted |= held_of(name, groups) if inside else {name: change}
    added = alive(monkeypatch, Held, "__getitem__")
    record = compress(tmp_path / "delta", tmp_path / "small", ratio=1 / 4)
    assert len(record["layers"]) == 14 and len(added) == record["changed"] + 14 and max(added) <= 2
    found = (tmp_path / "small" / "delta.safetensors").read_bytes()
    assert found == save(dict(sorted(wanted.items())))
    assert not list((tmp_path / "small").glob("*.parts"))


def test_compressing_against_inputs_holds_one_model_and_one_difference(models, tmp_path, monkeypatch):
    base, tuned, _ = models
    diff(base, tuned, tmp_path / "delta")
    small = ["data.train.limit=8", "data.eval.limit=4", "train.device=cpu"]
    loaded = load_recipe(SMOKE / "lora.yaml", [f"model.name={base}", *small])
    (tmp_path / "recipe.yaml").write_text(resolved(loaded.recipe))

    def compressed(out):
        record = compress(
            tmp_path / "delta", tmp_path / out, groups=[(8, 1), (3, 2)], recipe=tmp_path / "recipe.yaml"
        )
        return record, (tmp_path / out / "delta.safetensors").read_bytes()

    whole = compressed("whole")
    monkeypatch.setattr(asked, "SMALL", 0)
    read, added = alive(monkeypatch, Stored, "read"), alive(monkeypatch, Held, "__getitem__")
    assert compressed("streamed") == whole
    assert len(read) >= 14 and max(read) <= 2 and max(added) <= 2
