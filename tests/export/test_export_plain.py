"""`lrft export --for lora` and `vllm`: PEFT computes what was trained from plain factors, and the errors are told."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from lrft.api.exporting.export import export
from lrft.api.exporting.form import Options
from lrft.api.opening.open_run import open_run
from lrft.export.pairs import Wanted, pair_of
from lrft.export.vllm_form import RANKS, check_folder
from lrft.model.load import load_model
from lrft.registry.errors import NotMergeable, ToleranceError, UsageError
from lrft.training.folder import RunFolder
from tests.export.exported_runs import trained
from tests.export.reloaded import logits, pretrained

IDS = torch.randint(3, 400, (1, 12), generator=torch.Generator().manual_seed(0))
EXACT = {
    "lora": "adapter: {method: lora, rank: 4, alpha: 6}",
    "rslora": "adapter: {method: lora, rank: 4, alpha: 6, rslora: true}",
    "patterns": "adapter: {method: lora, rank: 4, rank_pattern: {q_proj: 2}, alpha_pattern: {down_proj: 5.0}}",
    "vera": "adapter: {method: vera, rank: 16, start: 1.0}",
    "lora_xs": "adapter: {method: lora_xs, rank: 4}\ninit: lora_xs",
    "pissa": "adapter: {method: lora, rank: 4}\ninit: pissa",
    "anchored": "adapter: {method: lora, rank: 4}\ninit: {method: pissa, residual: anchor}",
    "relora": "adapter: {method: lora, rank: 2}\nrestart: {method: relora, every: 2, warmup: 0}",
    "nf4": "adapter: {method: lora, rank: 4}\nquantization: nf4",
    "miss": "adapter: {method: miss, rank: 4}",
}
CUT = {
    "dora": "adapter: {method: dora, rank: 4}",
    "hira": "adapter: {method: hira, rank: 4}",
    "oft": "adapter: {method: oft, block_size: 8}",
    "shira": "adapter: {method: shira, rank: 4}",
}


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """`run(body)` -> the folder of a finished run; the same one for the same body."""
    made: dict = {}

    def get(body: str, family: str = "llama", **more):
        key = (body, family, *more.items())
        if key not in made:
            made[key] = trained(tmp_path_factory.mktemp("runs"), tiny(family), body, **more)
        return made[key]

    return get


def by_peft(folder, recipe, model):
    from peft import PeftModel

    peft = PeftModel.from_pretrained(pretrained(recipe, model), folder).eval()
    with torch.no_grad():
        return peft(input_ids=IDS).logits


QUICK = ("patterns", "vera", "pissa", "relora", "dora")


def quick(cases: dict) -> list:
    return [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in cases]


@pytest.mark.parametrize("case", quick(EXACT))
def test_peft_computes_the_run_from_exact_factors(run, tmp_path, case):
    record = export(run(EXACT[case]), "lora", tmp_path / "out")
    recipe, _, adaptation = open_run(RunFolder(run(EXACT[case])))
    theirs, ours = by_peft(tmp_path / "out", recipe, adaptation.model), logits(adaptation.model, IDS)
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)
    assert record["exact_sites"] == len(record["sites"]) and record["relative_error"] < 1e-5
    assert record["kl_mean"] < 1e-6
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and not config["use_rslora"] and "use_dora" not in config
    with torch.no_grad():
        bare = pretrained(recipe, adaptation.model)(input_ids=IDS).logits
    assert (bare - theirs).abs().max() > 1e-2  # the adapter does something, so equality says something


@pytest.mark.parametrize(
    ("family", "body"),
    [
        ("gpt2", "adapter: {method: vera, rank: 16, start: 1.0}"),
        pytest.param("gpt2", "adapter: {method: gralora, rank: 4, alpha: 8.0}", marks=pytest.mark.slow),
        (
            "llama",
            "adapter: {method: vera, rank: 16, start: 1.0, targets: [q_proj]}\ntrainable: [norm.weight]",
        ),
        pytest.param("qwen2", f"{EXACT['pissa']}\ntrainable: ['*.bias']", marks=pytest.mark.slow),
    ],
)
def test_transposed_layers_and_base_weights_beside_go_along(run, tmp_path, family, body):
    from peft import PeftModel

    record = export(run(body, family), "lora", tmp_path / "out", Options(error=1e-4))
    recipe, _, adaptation = open_run(RunFolder(run(body, family)))
    dense = load_model(recipe.model)  # the base as it is on disk: what trained beside has to be in the folder
    dense.hf.set_attn_implementation("eager")
    peft = PeftModel.from_pretrained(dense.hf, tmp_path / "out").eval()
    with torch.no_grad():
        theirs = peft(input_ids=IDS).logits
    torch.testing.assert_close(theirs, logits(adaptation.model, IDS), atol=1e-3, rtol=1e-3)
    assert record["kl_mean"] < 1e-5


@pytest.mark.parametrize("case", quick(CUT))
def test_what_has_no_factors_is_cut_within_the_error_that_is_told(run, tmp_path, case):
    options = Options(error=0.2)
    try:
        record = export(run(CUT[case]), "lora", tmp_path / "out", options)
    except ToleranceError as missed:
        record = missed.record
    recipe, _, adaptation = open_run(RunFolder(run(CUT[case])))
    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    for name, module in dict(adaptation.model.hf.named_modules()).items():
        if name in record["sites"]:
            told, change = record["sites"][name], module.change()
            A, B = (written[f"base_model.model.{name}.lora_{leaf}.weight"] for leaf in "AB")
            alpha = config.get("alpha_pattern", {}).get(name, config["lora_alpha"])
            error = float((alpha / len(A) * B @ A - change).norm() / change.norm())
            assert error == pytest.approx(told["error"], abs=1e-4)
            assert error <= 0.2 + 1e-4 and told["rank"] == len(A)
            assert told["energy"] == pytest.approx(1 - error**2, abs=1e-4)
            S = torch.linalg.svdvals(change)
            if told["rank"] > 1:  # one less would not do
                assert float(S[told["rank"] - 1 :].norm() / S.norm()) > 0.2
    assert record["kl_mean"] > 0
    # What is told of the divergence is what PEFT computes.
    theirs, ours = by_peft(tmp_path / "out", recipe, adaptation.model), logits(adaptation.model, IDS)
    assert (theirs - ours).abs().max() < 20 * record["logit_error_max"] + 1e-4


def test_an_error_above_tolerance_is_exit_6_and_the_files_stay(run, tmp_path):
    with pytest.raises(ToleranceError, match=r"a smaller --error or a higher --rank") as missed:
        export(run(CUT["oft"], lr=0.5), "lora", tmp_path / "out", Options(rank=1))
    assert missed.value.exit_code == 6 and (tmp_path / "out" / "adapter_config.json").is_file()
    assert any(note.startswith("--rank 1 leaves more than 0.05") for note in missed.value.record["told"])


def test_what_was_asked_cuts_exact_factors_too(run, tmp_path):
    record = export(run(EXACT["lora"]), "lora", tmp_path / "out", Options(rank=2))
    assert {site["rank"] for site in record["sites"].values()} == {2}
    _, _, adaptation = open_run(RunFolder(run(EXACT["lora"])))
    module = next(m for n, m in adaptation.model.hf.named_modules() if n in record["sites"])
    U, S, Vh = torch.linalg.svd(module.change(), full_matrices=False)
    best = U[:, :2] * S[:2] @ Vh[:2]
    torch.testing.assert_close(pair_of(module, Wanted(rank=2)).dense(), best, atol=1e-5, rtol=1e-4)


def test_vllm_gets_one_rank_and_no_scale_and_peft_still_computes_the_run(run, tmp_path):
    record = export(run(EXACT["patterns"]), "vllm", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 8 and "rank_pattern" not in config
    assert all(check["passed"] for check in record["checklist"]) and len(record["checklist"]) > 12
    recipe, _, adaptation = open_run(RunFolder(run(EXACT["patterns"])))
    theirs = by_peft(tmp_path / "out", recipe, adaptation.model)
    torch.testing.assert_close(theirs, logits(adaptation.model, IDS), atol=1e-4, rtol=1e-4)


def test_vllm_gets_any_method_that_merges(run, tmp_path):
    record = export(run(CUT["dora"]), "vllm", tmp_path / "out", Options(error=0.05))
    assert record["rank"] in RANKS and record["kl_mean"] < 0.05


@pytest.mark.parametrize(
    ("change", "failing"),
    [
        ({"modules_to_save": ["lm_head"]}, "no whole modules"),
        ({"use_dora": True}, "no magnitudes"),
        ({"alpha_pattern": {"q_proj": 3}}, "one rank and one alpha for all layers"),
        ({"r": 9}, "r is one of 8, 16, 32, 64, 128, 256, 320, 512"),
        ({"lora_alpha": 3.0}, "the scale is in B: lora_alpha is r"),
        ({"target_modules": ["q_proj"]}, "target_modules names the layers of the file"),
        ({"bias": "all"}, "no biases"),
    ],
)
def test_the_checklist_finds_what_vllm_would_not_take(run, tmp_path, change, failing):
    export(run(EXACT["lora"]), "vllm", tmp_path / "out")
    file = tmp_path / "out" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    failed = [check["check"] for check in check_folder(tmp_path / "out") if not check["passed"]]
    assert failing in failed


def test_for_peft_is_the_adapter_of_the_run(run, tmp_path):
    export(run(CUT["dora"]), "peft", tmp_path / "out")
    mine, theirs = (f / "adapter_model.safetensors" for f in (tmp_path / "out", run(CUT["dora"]) / "adapter"))
    assert mine.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize(
    ("body", "target", "options", "error", "says"),
    [
        ("adapter: {method: diablo, blocks: 4}", "peft", {}, UsageError, "`--for lora` writes its change"),
        ("adapter: null\ntrainable: full", "lora", {}, UsageError, "the run has no adapter; `lrft merge`"),
        ("adapter: {method: mola, rank: 2}", "lora", {}, NotMergeable, "cannot be merged"),
        (f"{EXACT['lora']}\ntrainable: [norm.weight]", "vllm", {}, UsageError, "model.norm.weight trained"),
        (EXACT["lora"], "peft", {"rank": 2}, UsageError, "--rank means nothing here"),
        (EXACT["lora"], "vlm", {}, UsageError, "did you mean"),
    ],
)
def test_what_a_form_cannot_say_is_refused_with_what_can(run, tmp_path, body, target, options, error, says):
    with pytest.raises(error, match=says):
        export(run(body), target, tmp_path / "out", Options(**options))
    assert not (tmp_path / "out").exists() and list(tmp_path.iterdir()) == []
