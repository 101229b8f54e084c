"""A run that begins with an adapter: PEFT's logits, another rank or method by exact factors, a cut that is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lrft.api.merging.merge import merge
from lrft.api.training.train import train
from lrft.build.adapt import adapt
from lrft.build.starting_plan import plan_without_weights
from lrft.core.adapted import adapted
from lrft.core.batch import Batch
from lrft.model.load import load_model
from lrft.recipe.load import load_recipe
from lrft.registry.errors import RecipeError, UsageError
from lrft.training import checkpoint
from tests.training.unbroken import goes_on_unbroken

PLAIN = [
    "quantization=none",
    "model.dtype=float32",
    "train.max_steps=3",
    "train.save_every=1",
    "train.keep_last=9",
]
FAST = ["optimizer.lr=0.02", "~train.eval_every", "schedule=constant"]
SMOKE = Path(__file__).parents[2] / "recipes" / "smoke"
IDS = torch.tensor([[5, 9, 2, 77, 31, 8]])


@pytest.fixture(scope="module")
def written(tiny_recipe, tmp_path_factory):
    """`written(*overrides)` -> the loaded recipe of the tiny model in float32."""
    path = tiny_recipe(tmp_path_factory.mktemp("recipe"))
    return lambda *overrides: load_recipe(path, [*PLAIN, *FAST, *overrides])


@pytest.fixture(scope="module")
def run(written, tmp_path_factory):
    """A finished LoRA of rank 4, one of rank 4 as DoRA, and one with a start that its base gave up."""
    folder = tmp_path_factory.mktemp("runs")
    train(written(), folder / "lora")
    train(written("adapter.method=dora"), folder / "dora")
    train(written("init=pissa", "adapter.dropout=0"), folder / "pissa")
    return folder


def logits(model):
    none = IDS.new_empty(0)
    model.eval()
    with torch.no_grad():
        return model(Batch(IDS, torch.arange(6)[None], ((0, 0, 6),), none, none))


def newest(run):
    return max((run / "checkpoints").iterdir(), key=lambda path: path.stat().st_mtime)


def begun(loaded):
    return adapt(loaded.recipe)


def finished(folder):
    from lrft.api.opening.open_run import open_run
    from lrft.training.folder import find

    return open_run(find(folder))[2].model


PEFT = {
    "lora": {"r": 6, "lora_alpha": 9},
    "rslora": {"r": 4, "lora_alpha": 5, "use_rslora": True},
    "dora": {"r": 4, "lora_alpha": 8, "use_dora": True},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {"layers.1.self_attn.q_proj": 2, "down_proj": 3},
        "alpha_pattern": {"down_proj": 3, ".*mlp.up_proj": 20},
    },
    "some layers": {
        "r": 2,
        "lora_alpha": 2,
        "layers_to_transform": [1],
        "target_modules": ["q_proj", "up_proj"],
    },
}


def saved_by_peft(base, folder, keys):
    """What PEFT saves of a LoRA with random factors, and the logits it computes."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    hf = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    model = get_peft_model(
        hf, LoraConfig(**{"target_modules": targets, "task_type": "CAUSAL_LM", **keys})
    ).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
        found = model(IDS).logits
    model.save_pretrained(folder)
    return found


@pytest.mark.parametrize("case", PEFT)
def test_the_first_logits_are_those_of_peft(case, written, tiny, tmp_path):
    theirs = saved_by_peft(tiny(), tmp_path / "given", PEFT[case])
    method = "dora" if case == "dora" else "lora"
    section = {"rank": PEFT[case]["r"], "alpha": float(PEFT[case]["lora_alpha"]), "method": method}
    told = [f"adapter={json.dumps(section)}", f"model.adapter={tmp_path / 'given'}"]
    adaptation = begun(written(*told, f"adapter.rslora={json.dumps('rs' in case)}"))
    error = (logits(adaptation.model) - theirs).abs().max() / theirs.abs().max()
    assert error < 2e-6
    assert adaptation.origin["kind"] == "peft" and adaptation.origin["relative_error"] == 0


def ia3_saved_by_peft(base, folder, targets, feedforward):
    """What PEFT saves of an (IA)^3 with random gains, and the logits it computes."""
    from peft import IA3Config, get_peft_model
    from transformers import AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    keys = {"target_modules": targets, "feedforward_modules": feedforward, "task_type": "CAUSAL_LM"}
    model = get_peft_model(hf, IA3Config(**keys)).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ia3_l" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
        found = model(IDS).logits
    model.save_pretrained(folder)
    return found


@pytest.mark.parametrize(
    ("targets", "feedforward", "adapter"),
    [
        (["k_proj", "v_proj", "down_proj"], ["down_proj"], {}),
        (["q_proj", "up_proj", "down_proj"], r".*\.(up|down)_proj", {"feedforward": ["up_proj", "down_proj"]}),
        (["k_proj", "down_proj"], [], {"feedforward": ["o_proj"], "targets": ["k_proj", "down_proj", "o_proj"]}),
    ],
)  # fmt: skip
def test_a_folder_of_ia3_is_read_and_its_first_logits_are_pefts(
    written, tiny, tmp_path, targets, feedforward, adapter
):
    """Which gains are on inputs is what the tensors say, and no expression of a stranger's is matched."""
    theirs = ia3_saved_by_peft(tiny(), tmp_path / "given", targets, feedforward)
    section = {"method": "ia3", "targets": targets, **adapter}
    told = [f"adapter={json.dumps(section)}", f"model.adapter={tmp_path / 'given'}"]
    adaptation = begun(written(*told))
    error = (logits(adaptation.model) - theirs).abs().max() / theirs.abs().max()
    assert error < 2e-6
    assert adaptation.origin["method"] == "ia3" and adaptation.origin["relative_error"] == 0
    assert sum(part.adapter.l.ne(1).any() for _, part in adapted(adaptation.model.hf)) == 2 * len(targets)


def test_ia3_elsewhere_or_with_more_is_refused(written, tiny, tmp_path):
    ia3_saved_by_peft(tiny(), tmp_path / "given", ["up_proj"], ["up_proj"])
    given, section = f"model.adapter={tmp_path / 'given'}", {"method": "ia3", "targets": ["up_proj"]}
    with pytest.raises(RecipeError, match=r"only as it is; write adapter\.feedforward: \['model.*up_proj'\]"):
        begun(written(f"adapter={json.dumps(section)}", given))
    path = tmp_path / "given" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "modules_to_save": ["lm_head"]}))
    with pytest.raises(RecipeError, match="has modules_to_save"):
        begun(written(f"adapter={json.dumps({**section, 'feedforward': ['up_proj']})}", given))


@pytest.mark.parametrize(
    ("given", "adapter"),
    [
        ("lora", "{method: lora, rank: 4, alpha: 32.0}"),
        ("lora", "{method: lora, rank: 9, alpha: 5.0, rslora: true}"),
        ("lora", "{method: dora, rank: 6}"),
        ("dora", "{method: dora, rank: 4, alpha: 32.0}"),
        ("dora", "{method: dora, rank: 7, alpha: 3.0}"),
        ("pissa", "{method: lora, rank: 8}"),
    ],
)
def test_a_rank_that_holds_it_takes_it_over_exactly(run, written, given, adapter):
    """From float32 checkpoints: the function at step 0 is the finished run's."""
    adaptation = begun(written(f"adapter={adapter}", f"model.adapter={run / given}"))
    wanted, base = logits(finished(run / given)), logits(load_model(written().recipe.model))
    found = logits(adaptation.model)
    assert (found - wanted).norm() < 1e-5 * (wanted - base).norm() + 1e-6 * wanted.norm()
    assert (wanted - base).norm() > 1e-3 * wanted.norm()
    assert not [n for n in adaptation.notes if "is cut" in n]


def test_the_same_method_and_rank_goes_on_bit_for_bit(run, written):
    adaptation = begun(written(f"model.adapter={run / 'lora'}"))
    saved = checkpoint.read_adapter(run / "lora" / "checkpoints" / "step-3")
    for name, module in adapted(adaptation.model.hf):
        assert torch.equal(module.adapter.A, saved[f"{name}.A"]) and torch.equal(
            module.adapter.B, saved[f"{name}.B"]
        )
    assert f"model.adapter: lora of {run / 'lora'} goes on as it is at 14 sites" in adaptation.notes


def test_other_positions_and_a_reference_that_it_is_not_are_told(run, written, tmp_path):
    stretched = begun(
        written(f"model.adapter={run / 'lora'}", "model.rope_scaling={type: linear, factor: 2}")
    )
    assert any("trained with another model.rope_scaling" in note for note in stretched.notes)
    rows = tmp_path / "pairs.jsonl"
    rows.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 4)
    pairs = [f"data={{train: {rows}, format: preference}}", "objective=dpo", "adapter.dropout=0"]
    compared = begun(written(f"model.adapter={run / 'lora'}", *pairs))
    assert any("compares with the base without any adapter" in note for note in compared.notes)
    assert not any("another model.rope_scaling" in note for note in compared.notes)


def test_an_adapter_whose_file_names_another_folder_as_its_base_is_told(run, written, tmp_path):
    folder = shutil.copytree(run / "lora" / "adapter", tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    same = begun(written(f"model.adapter={folder}"))
    assert not any("its file says that it is of" in note for note in same.notes)
    config["base_model_name_or_path"] = "/models/other-3b"
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "manifest.json").unlink(missing_ok=True)
    assert any(
        "its file says that it is of other-3b, and" in n
        for n in begun(written(f"model.adapter={folder}")).notes
    )


def test_a_checkpoint_and_the_adapter_folder_of_a_run_are_named_too(run, written):
    early = begun(written(f"model.adapter={run / 'lora' / 'checkpoints' / 'step-1'}"))
    assert early.origin["path"].endswith("step-1")
    folder = begun(written(f"model.adapter={run / 'lora' / 'adapter'}"))
    assert folder.origin["path"].endswith("step-3") and folder.origin["sha256"] != early.origin["sha256"]
    last = begun(written(f"model.adapter={run / 'lora' / 'last'}"))
    assert last.origin == folder.origin


@pytest.mark.parametrize(
    ("given", "adapter"), [("lora", "{method: lora, rank: 2}"), ("dora", "{method: lora, rank: 4}")]
)
def test_a_lower_rank_is_the_nearest_one_and_its_error_is_told(run, written, given, adapter):
    adaptation = begun(written(f"adapter={adapter}", f"model.adapter={run / given}"))
    whole = dict(adapted(finished(run / given).hf))
    lost = total = 0.0
    for name, module in adapted(adaptation.model.hf):
        wanted, got = whole[name].change(), module.change()
        U, S, V = torch.linalg.svd(wanted)
        rank = module.adapter.A.shape[0]
        assert torch.allclose(got, U[:, :rank] * S[:rank] @ V[:rank], atol=2e-5 * float(S[0]))
        lost, total = lost + S[rank:].square().sum(), total + S.square().sum()
    error = float((lost / total).sqrt())
    assert 0.001 < error < 1
    assert adaptation.origin["relative_error"] == pytest.approx(error, rel=1e-2)
    told = f"is cut to the rank here at 14 sites, which loses {adaptation.origin['relative_error']:.2%} of its change"
    assert any(told in note for note in adaptation.notes)


OTHERS = {
    "lora_xs": ("adapter={method: lora_xs, rank: 4}", "init=lora_xs", "adapter.dropout=0"),
    "miss": ("adapter={method: miss, rank: 4}",),
    "hira": ("adapter={method: hira, rank: 4}",),
    "oft": ("adapter={method: oft, block_size: 8}",),
}


@pytest.mark.parametrize(
    "method", ["lora_xs", "hira", *(pytest.param(one, marks=pytest.mark.slow) for one in ("miss", "oft"))]
)
def test_another_methods_change_is_taken_as_far_as_the_rank_goes(written, tmp_path, method):
    """Exactly where it has factors; else what is missing is the error that is told."""
    train(written("train.max_steps=1", *OTHERS[method]), tmp_path / "run")
    adaptation = begun(written("adapter={method: lora, rank: 16}", f"model.adapter={tmp_path / 'run'}"))
    whole = dict(adapted(finished(tmp_path / "run").hf))
    lost = total = 0.0
    for name, module in adapted(adaptation.model.hf):
        wanted = whole[name].change()
        lost, total = lost + (module.change() - wanted).square().sum(), total + wanted.square().sum()
    assert total > 0
    assert adaptation.origin["relative_error"] == pytest.approx(float((lost / total).sqrt()), abs=1e-3)
    exact = method in ("lora_xs", "miss")
    assert (adaptation.origin["relative_error"] < 1e-4) == exact


def test_sites_that_nothing_is_given_for_begin_anew(run, written, tmp_path):
    train(written("adapter.targets=[q_proj]"), tmp_path / "few")
    adaptation = begun(written(f"model.adapter={tmp_path / 'few'}"))
    assert any("goes on as it is at 2 sites; 12 sites begin anew" in note for note in adaptation.notes)
    wanted, found = logits(finished(tmp_path / "few")), logits(adaptation.model)
    assert torch.allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("name", ["gps", "lift_entries", "loki", "sct", "mixlora"])
def test_what_an_init_chose_and_what_a_block_made_goes_on_as_it_is(on_tiny, tmp_path, name):
    """Of `lift_entries` with those entries that lost their place on the way."""
    path = SMOKE / f"{name}.yaml"
    few = [
        "data.train.limit=20",
        "data.eval.limit=2",
        "train.device=cpu",
        "model.dtype=float32",
        "schedule=constant",
    ]
    few += [*on_tiny(path), "optimizer.lr=0.02"]
    moving = ["allocate={method: lift_entries, every: 1}"] if name == "lift_entries" else []
    train(load_recipe(path, [*few, *moving]), tmp_path / "first", resume=False)
    still = [
        "allocate=uniform",
        "optimizer.lr=1e-12",
        "train.max_steps=1",
        "train.seed=7",
        f"model.adapter={tmp_path / 'first'}",
    ]
    train(load_recipe(path, [*few, *still]), tmp_path / "second", resume=False)
    first, second = (load_file(newest(tmp_path / run) / "adapter.safetensors") for run in ("first", "second"))
    assert first.keys() == second.keys()
    assert all(torch.allclose(tensor, second[key], atol=1e-9) for key, tensor in first.items())
    if moving:
        assert any(len(tensor) for key, tensor in first.items() if key.endswith("left_values"))


def test_what_would_be_left_behind_or_cannot_be_is_refused(run, written, tiny, tmp_path):
    lora = f"model.adapter={run / 'lora'}"
    for overrides, words in (
        (["adapter.targets=[q_proj]"], "which gets no adapter here"),
        (["adapter={method: vera, rank: 8}"], "vera cannot begin with a trained lora"),
        (["init=pissa"], "says what the adapter begins with"),
        (["trainable=full", "adapter=null", "init=null"], "there is no adapter that could begin with it"),
        ([f"model.name={tiny('llama', tied=False)}"], "was trained on another base model"),
    ):
        with pytest.raises(RecipeError, match=words):
            begun(written(lora, *overrides))
    with pytest.raises(RecipeError, match="is no run, no checkpoint of one, no folder"):
        written(f"model.adapter={tmp_path / 'nothing'}")
    with pytest.raises(RecipeError, match="which gets no adapter here"):
        recipe = written(lora, "adapter.targets=[q_proj]").recipe
        plan_without_weights(recipe, load_model(recipe.model, meta=True))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("init_lora_weights", "pissa", "fits a base that the start changed"),
        ("lora_bias", True, "has lora_bias"),
        ("layer_replication", [[0, 1]], "has layer_replication"),
        ("peft_type", "LOHA", "is of type LOHA, which is not read here"),
        ("r", 5, "it is of another model, or its adapter_config.json is"),
    ],
)
def test_a_peft_folder_that_says_more_than_is_read_is_refused(written, tiny, tmp_path, key, value, words):
    saved_by_peft(tiny(), tmp_path / "given", PEFT["lora"])
    path = tmp_path / "given" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(RecipeError, match=words):
        begun(written(f"model.adapter={tmp_path / 'given'}"))


def test_modules_that_were_saved_beside_are_refused(written, tiny, tmp_path):
    saved_by_peft(tiny(), tmp_path / "given", {**PEFT["lora"], "modules_to_save": ["embed_tokens"]})
    with pytest.raises(RecipeError, match="has modules_to_save"):
        begun(written(f"model.adapter={tmp_path / 'given'}"))


@pytest.fixture(scope="module")
def second(run, written, tmp_path_factory):
    """A run of three steps that began with the first."""
    folder = tmp_path_factory.mktemp("second") / "run"
    train(written(f"model.adapter={run / 'lora'}", "adapter.rank=6", "train.seed=1"), folder)
    return folder


def test_where_it_began_is_recorded_and_kept(run, written, second):
    record = json.loads((second / "run.json").read_text())["adapter"]
    saved = run / "lora" / "checkpoints" / "step-3"
    sha = json.loads((saved / "manifest.json").read_text())["files"]["adapter.safetensors"]["sha256"]
    assert record == {
        "path": str(saved),
        "kind": "run",
        "method": "lora",
        "sha256": sha,
        "sites": {"factors": 14},
        "relative_error": 0.0,
    }


def test_it_resumes_unbroken_though_the_first_is_gone(run, written, tmp_path):
    shutil.copytree(run / "lora", tmp_path / "first")
    loaded = written(f"model.adapter={tmp_path / 'first'}")
    train(loaded, tmp_path / "whole")
    shutil.rmtree(tmp_path / "first")
    goes_on_unbroken(loaded, tmp_path / "whole", 1, tmp_path / "broken")
    assert json.loads((tmp_path / "broken" / "run.json").read_text())["adapter"]["kind"] == "run"
    assert train(tmp_path / "broken", resume=True)["step"] == 3


def test_another_adapter_in_the_same_place_is_refused_before_a_step_was_saved(run, written, tmp_path):
    shutil.copytree(run / "lora", tmp_path / "first")
    loaded = written(f"model.adapter={tmp_path / 'first'}")
    train(loaded, tmp_path / "whole")
    (tmp_path / "whole" / "result.json").unlink()
    for name in ("checkpoints", "last"):
        shutil.rmtree(tmp_path / "whole" / name)
    shutil.rmtree(tmp_path / "first" / "checkpoints" / "step-3")
    with pytest.raises(UsageError, match=r"the adapter of model\.adapter changed"):
        train(loaded, tmp_path / "whole", resume=True)


def test_the_merged_and_the_exported_one_are_changes_of_the_original_base(
    written, second, tiny, tmp_path, short_answers
):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    wanted = logits(finished(second))
    merge(second, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(tiny(), dtype=torch.float32)
    exported = PeftModel.from_pretrained(base, second / "adapter").eval()
    with torch.no_grad():
        for model in (merged, exported):
            assert torch.allclose(model(IDS).logits, wanted, atol=1e-5)
    recipe = (tmp_path / "merged" / "recipe.yaml").read_text()
    assert "adapter: lora\n" in recipe and "/lora" not in recipe
