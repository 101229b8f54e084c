"""R11 for what `--add` and `model.adapter` name: a stranger's adapter is refused in a sentence, whatever it says."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lrft.build.earlier import _trained
from lrft.build.earlier_peft import read_peft
from lrft.core.params import Site
from lrft.registry.axes import ADAPTERS
from lrft.registry.errors import RecipeError
from tests.older_run import as_older
from tests.reliability.full_disk import call

SITE = Site("layers.0.q_proj", 6, 4)
LORA = f"base_model.model.{SITE.name}.lora"
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
WRONG = {
    "a rank of 0": ({"r": 0}, 1.0, r"adapter_config.json: its rank is none that lora has"),
    "a rank of 10^30": ({"r": 10**30}, 1.0, "its rank is none that lora has"),
    "a rank of 60,000": ({"r": 60_000}, 1.0, r"takes A of \(60000, 6\)"),
    "no number": ({"lora_alpha": float("nan")}, 1.0, "its alpha is none that lora has"),
    "beyond all": ({"lora_alpha": 1e308}, 1.0, "its alpha is none that lora has"),
    "tensors of no numbers": ({}, float("inf"), "has A of layers.0.q_proj with numbers that are not finite"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_folder_of_peft_that_says_what_cannot_be_is_refused(tmp_path, kind):
    changed, scale, said = WRONG[kind]
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG | changed))
    factors = {f"{LORA}_A.weight": torch.ones(2, 6), f"{LORA}_B.weight": torch.ones(4, 2)}
    file = tmp_path / "adapter_model.safetensors"
    save_file({name: scale * tensor for name, tensor in factors.items()}, file)
    with pytest.raises(RecipeError, match=said) as refused:
        read_peft(tmp_path, {SITE.name: SITE}, "lora")
    assert "\n" not in str(refused.value)


def test_a_run_with_other_tensors_than_its_plan_says_is_refused():
    lora, settings = ADAPTERS.get("lora"), ADAPTERS.settings("lora", rank=2)
    held = {f"{SITE.name}.A": torch.ones(2, 6), f"{SITE.name}.B": torch.ones(4, 2)}
    assert _trained(lora, settings, SITE, held).whole
    for other in (
        {f"{SITE.name}.A": torch.ones(1, 6)},
        {f"{SITE.name}.C": torch.ones(1)},
    ):
        with pytest.raises(
            RecipeError, match=r"other tensors at layers.0.q_proj than its plan says \([AC]\)"
        ):
            _trained(lora, settings, SITE, {**held, **other})
    with pytest.raises(RecipeError, match=r"than its plan says \(B\)"):
        _trained(lora, settings, SITE, {f"{SITE.name}.A": torch.ones(2, 6)})


@pytest.mark.slow
def test_a_run_that_holds_more_than_its_sites_have_is_not_added(bench):
    place = bench.place("merge", "added")
    other = as_older(shutil.copytree(place / "run", place / "other"))
    for file in other.glob("checkpoints/*/adapter.safetensors"):
        save_file({**load_file(file), "stray.A": torch.ones(2)}, file)
        path = file.parent / "manifest.json"
        manifest = json.loads(path.read_text())
        del manifest["files"]["adapter.safetensors"]
        manifest["files"] |= {"adapter.safetensors": _sum(file)}
        path.write_text(json.dumps(manifest))
    ended = call(place, ("merge", "run", "--add", "other", "--out", "out"))
    assert ended.code == 2 and "holds stray.A, which is of no site of its plan" in ended.err, ended
    assert not (place / "out").exists()


def _sum(file):
    from lrft.files.sums import file_sum

    return file_sum(file)
