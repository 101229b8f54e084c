"""Folders that PEFT wrote: the spectrum is that of the change which PEFT itself makes of the tensors."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from lrft.lab.spectra.inspect import inspect
from lrft.lab.spectra.measure import Look
from lrft.registry.errors import DamagedFile, UsageError

LINEAR = ["q_proj", "down_proj"]
FOLDERS = {
    "plain": ("llama", {"r": 4, "lora_alpha": 12, "target_modules": LINEAR}),
    "scaled by the root": ("llama", {"r": 4, "use_rslora": True, "target_modules": LINEAR}),
    "patterns": (
        "llama",
        {
            "target_modules": LINEAR,
            "rank_pattern": {"down_proj": 3, r"layers\.1\.self_attn\.q_proj": 2},
            "alpha_pattern": {"q_proj": 32},
        },
    ),
    "gain": ("llama", {"r": 4, "use_dora": True, "target_modules": LINEAR}),
    "embedding": ("llama", {"r": 4, "target_modules": ["embed_tokens", "q_proj"]}),
    "transposed": ("gpt2", {"r": 4, "target_modules": ["c_attn"], "fan_in_fan_out": True}),
    "transposed gain": (
        "gpt2",
        {"r": 4, "target_modules": ["c_attn"], "fan_in_fan_out": True, "use_dora": True},
    ),
}


def noisy(model) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def written(base, folder, config):
    """PEFT's model on the base, its adapter moved by noise and saved."""
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    noisy(model)
    model.save_pretrained(folder)
    return model


def layers(model):
    """Path in the base model -> PEFT's layer."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    prefix = "base_model.model."
    return {
        name.removeprefix(prefix): module
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer)
    }


@pytest.fixture(scope="module", params=FOLDERS)
def case(request, tiny, tmp_path_factory):
    from peft import LoraConfig

    family, settings = FOLDERS[request.param]
    base, folder = tiny(family), tmp_path_factory.mktemp("peft") / "adapter"
    model = written(base, folder, LoraConfig(task_type="CAUSAL_LM", **settings))
    return model, folder, inspect(folder, Look(top=3))


def test_the_change_is_the_one_that_peft_merges(case):
    """Weights before and after PEFT's own merge, as (out, in)."""
    model, _, found = case
    sites = {site["site"]: site for site in found["sites"]}
    assert sites.keys() == layers(model).keys()
    before = {name: layer.get_base_layer().weight.detach().clone() for name, layer in layers(model).items()}
    model.merge_adapter()
    for name, layer in layers(model).items():
        change = (layer.get_base_layer().weight.detach() - before[name]).double()
        values = torch.linalg.svdvals(change)
        kept = torch.tensor(sites[name]["values"], dtype=torch.float64)
        torch.testing.assert_close(kept, values[: len(kept)], atol=1e-5, rtol=1e-4)
        relative = float(change.norm() / before[name].double().norm())
        assert sites[name]["relative"] == pytest.approx(relative, rel=1e-4)
        assert sorted(sites[name]["shape"]) == sorted(change.shape)
        assert sites[name]["allocated"] == layer.r["default"]
    model.unmerge_adapter()


def test_a_base_of_its_own_gives_angles_and_intruders(case):
    assert all(site["intruders"] is not None and site["input"] is not None for site in case[2]["sites"])


def test_the_folder_is_left_as_it_was(case):
    assert not (case[1] / "inspect").exists() and case[2]["step"] is None


@pytest.fixture(scope="module")
def plain(tiny, tmp_path_factory):
    from peft import LoraConfig

    folder = tmp_path_factory.mktemp("plain") / "adapter"
    written(tiny(), folder, LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=LINEAR))
    return folder


def changed(folder, tmp_path, **keys):
    """A copy of the folder whose configuration says something else."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps({**config, **keys}))
    return copy


def test_components_that_are_switched_by_a_diagonal_count_as_peft_loads_them(tiny, tmp_path):
    from peft import AdaLoraConfig, PeftModel
    from transformers import AutoModelForCausalLM

    settings = {"init_r": 4, "target_r": 2, "total_step": 10, "tinit": 1, "tfinal": 1, "lora_alpha": 8}
    written(tiny(), tmp_path, AdaLoraConfig(task_type="CAUSAL_LM", target_modules=LINEAR, **settings))
    base = AutoModelForCausalLM.from_pretrained(tiny(), dtype=torch.float32)
    loaded = PeftModel.from_pretrained(base, tmp_path)
    for site in inspect(tmp_path, Look(quick=True))["sites"]:
        change = layers(loaded)[site["site"]].get_delta_weight("default").detach()
        torch.testing.assert_close(
            torch.tensor(site["values"]), torch.linalg.svdvals(change)[:4], atol=1e-5, rtol=1e-4
        )


def test_without_its_base_the_spectra_are_there_and_a_line_says_what_is_not(plain, tmp_path, capsys):
    copy = changed(plain, tmp_path, base_model_name_or_path=str(tmp_path / "gone"))
    found = inspect(copy)
    assert found["base"] is None and found["relative"] is None and found["intruders"] is None
    values = [site["values"] for site in found["sites"]]
    assert values == [site["values"] for site in inspect(plain, Look(quick=True))["sites"]]
    assert "without the base's weights" in capsys.readouterr().err


def test_the_base_that_is_given_is_taken(plain, tiny, tmp_path):
    copy = changed(plain, tmp_path, base_model_name_or_path=str(tmp_path / "gone"))
    assert inspect(copy, Look(quick=True), base=str(tiny()))["relative"] == pytest.approx(
        inspect(plain, Look(quick=True))["relative"]
    )
    with pytest.raises(UsageError, match="--base: "):
        inspect(copy, base=str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match=r"has no layer model\.layers\.0\."):
        inspect(copy, base=str(tiny("gpt2")))


def test_a_gain_without_its_base_is_refused(tiny, tmp_path):
    from peft import LoraConfig

    written(tiny(), tmp_path / "a", LoraConfig(task_type="CAUSAL_LM", target_modules=LINEAR, use_dora=True))
    copy = changed(tmp_path / "a", tmp_path, base_model_name_or_path=None)
    with pytest.raises(UsageError, match="depends on the base's weights"):
        inspect(copy)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"peft_type": "VERA"}, "peft_type VERA is not read here"),
        ({"init_lora_weights": "pissa_niter_4"}, "took a part off the base"),
        ({"init_lora_weights": "olora"}, "took a part off the base"),
        ({"init_lora_weights": "of tomorrow"}, "took a part off the base"),
        ({"use_qalora": True}, "use_qalora changes what the tensors mean"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens changes"),
    ],
    ids=lambda value: next(iter(value.values())) if isinstance(value, dict) else "",
)
def test_what_would_be_read_wrongly_is_refused_in_one_sentence(plain, tmp_path, keys, message):
    with pytest.raises(UsageError, match=message) as told:
        inspect(changed(plain, tmp_path, **keys))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("start", [True, False, "gaussian", "eva", "orthogonal"])
def test_a_start_that_leaves_the_base_alone_is_read(plain, tmp_path, start):
    assert inspect(changed(plain, tmp_path, init_lora_weights=start), Look(quick=True))["sites"]


def test_damaged_files_are_refused_by_name(plain, tmp_path):
    copy = changed(plain, tmp_path)
    (copy / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(DamagedFile, match=r"adapter_model\.safetensors: is torn: its header would need"):
        inspect(copy)
    (copy / "adapter_model.safetensors").write_bytes((2).to_bytes(8, "little") + b"[]")
    with pytest.raises(UsageError, match=r"adapter_model\.safetensors: cannot be read"):
        inspect(copy)
    (copy / "adapter_config.json").write_text("{")
    with pytest.raises(DamagedFile, match=r"adapter_config\.json: is torn: it ends in the middle"):
        inspect(copy)


def test_the_adapter_folder_of_a_run_says_what_the_run_says(trained):
    run = trained("lora")
    ours = {site["site"]: site for site in inspect(run, Look(quick=True))["sites"]}
    theirs = inspect(run / "adapter", Look(quick=True))
    assert theirs["kind"] == "peft" and {site["site"] for site in theirs["sites"]} == ours.keys()
    for site in theirs["sites"]:
        assert site["values"] == pytest.approx(ours[site["site"]]["values"], rel=1e-4)
        assert site["relative"] == pytest.approx(ours[site["site"]]["relative"], rel=1e-4)
