"""The command line as a user meets it: exit codes, one-line errors, a frozen list of options, the whole path."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer.main

from lrft.cli import app

DATA = Path(__file__).parents[2] / "recipes" / "data" / "quickstart"
RECIPE = """
model: {{name: {model}, dtype: float32}}
quantization: {quantization}
adapter: {{method: dora, rank: 4}}
optimizer: {{method: adamw, lr: 0.01}}
data:
  train: {{source: {data}/train.jsonl, limit: 40}}
  eval: {{source: {data}/test.jsonl, limit: 8}}
  format: {{method: prompt_completion, render: chat}}
train: {{max_steps: 6, batch_size: 2, max_length: 160, save_every: 2, device: cpu}}
eval: {{tasks: [loss, {{method: exact_match, max_new_tokens: 8}}]}}
"""

TALK = {"--json", "--quiet"}
TRUST = {"--trust-remote-code"}
SAMPLING = {"--temperature", "--top-p", "--top-k", "--seed", "--max-new-tokens"}
OPTIONS = {
    "train": {
        *("--out", "--resume", "--more-steps", "--more-rate", "--dry-run", "--profile"),
        *("--trust-remote-code", *TALK),
    },
    "federate": {"--out", "--resume", "--dry-run", *TRUST, *TALK},
    "plan": {"--device", "--predict", "--price", *TRUST, *TALK},
    "eval": {"--task", "--harness", "--limit", "--baseline", "--checkpoint", "--posterior", *TRUST, *TALK},
    "posterior": {
        *("--layers", "--rank", "--above", "--temperature", "--limit", "--checkpoint"),
        *(*TRUST, *TALK),
    },
    "chat": {"--base", *SAMPLING, *TRUST, *TALK},
    "generate": {"--out", "--base", *SAMPLING, *TRUST, *TALK},
    "serve": {
        *("--host", "--port", "--rows", "--queue", "--cache-tokens", "--max-tokens", "--adapter-memory"),
        *("--max-body", "--timeout", "--drain", *TRUST, *TALK),
    },
    "merge": {
        *("--out", "--onto", "--rank", "--rounding", "--dtype", "--checkpoint", "--add", "--features"),
        *("--requantize", "--keep-rank", "--factors", *TRUST),
        *TALK,
    },
    "export": {
        *("--out", "--for", "--error", "--rank", "--dtype", "--merged"),
        *("--from", "--push", "--public", *TRUST, *TALK),
    },
    "combine": {
        *("--out", "--method", "--set", "--weights", "--rank", "--error", "--recipe"),
        *("--seed", "--eval", "--limit", "--curve", *TRUST, *TALK),
    },
    "generate-adapter fit": {"--method", "--out", "--describe", "--seed", *TRUST, *TALK},
    "generate-adapter draw": {
        *("--out", "--describe", "--seed", "--judge", "--draws", "--limit", *TRUST, *TALK),
    },
    "transfer": {
        *("--to", "--out", "--seeds", "--shots", "--discriminator", "--judge", "--contrast"),
        *("--candidates", "--threshold", "--match", "--prompt", *SAMPLING, *TRUST, *TALK),
    },
    "doctor": {*TRUST, *TALK},
    "inspect": {"--top", "--below", "--quick", "--base", "--sites", *TRUST, *TALK},
    "report": {"--out", "--png", "--inspect", *TALK},
    "find-lr": {"--from", "--to", "--steps", "--plot", "--trust-remote-code", *TALK},
    "compare": {
        *("--out", "--match", "--lr-grid", "--lr-search", "--seeds", "--jobs", "--base"),
        *("--cluster", "--cluster-set", *TRUST, *TALK),
    },
    "choose": {
        *("--out", "--base", "--shots", "--further", "--rows", "--questions", "--price", "--tradeoff"),
        *("--past", "--seed", *TRUST, *TALK),
    },
    "sweep": {
        *("--out", "--arms", "--metric", "--jobs", "--keep-checkpoints", "--cluster", "--cluster-set"),
        *(*TRUST, *TALK),
    },
    "reproduce": {
        *("--out", "--tier", "--seeds", "--jobs", "--device", "--cluster", "--cluster-set"),
        *("--fresh", "--dry-run"),
        *(*TRUST, *TALK),
    },
    "search": {
        *("--space", "--budget", "--out", "--method", "--metric", "--against", "--jobs", "--seed"),
        *("--keep-checkpoints", "--cluster", "--cluster-set", *TRUST, *TALK),
    },
    "recipes ls": {"--json"},
    "recipes show": {"--origins", "--json"},
    "recipes cp": {"--json"},
    "recipes validate": {"--json"},
    "recipes schema": {"--json"},
    "recipes diff": {"--json"},
    "methods ls": {"--json"},
    "methods show": {"--json"},
    "data show": {"--rows", "--at", "--split", "--ids", "--packed", "--trust-remote-code", *TALK},
    "data check": {"--processes", "--trust-remote-code", *TALK},
    "delta diff": {"--out", "--dtype", *TRUST, *TALK},
    "delta apply": {"--out", "--weight", "--dtype", *TRUST, *TALK},
    "delta compress": {"--out", "--ratio", "--bits", "--recipe", "--rows", *TRUST, *TALK},
    "data rank": {"--source", "--method", "--out", "--rows", "--seed", *TRUST, *TALK},
    "data augment": {
        *("--prompt", "--out", "--into", "--run", "--times", "--verify", "--stages", "--allow-code"),
        *SAMPLING,
        *TRUST,
        *TALK,
    },
    "data select": {
        *("--method", "--budget", "--out", "--target", "--run", "--seed", "--processes"),
        *TRUST,
        *TALK,
    },
    "env": {"--json", "--sbom"},
}


def process(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own, which imports torch for seconds; `call` runs the same entry point here."""
    command = [sys.executable, "-m", "lrft", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)


def options_of(command, name="") -> dict[str, set[str]]:
    if hasattr(command, "commands"):
        found = {}
        for key, inner in command.commands.items():
            found |= options_of(inner, f"{name} {key}".strip())
        return found
    flags = {o for p in command.params if p.param_type_name == "option" for o in p.opts if o.startswith("--")}
    return {name: flags - {"--help"}}


def test_there_are_these_options_and_no_others():
    """A setting belongs in the recipe; a new flag has to be argued for here."""
    assert options_of(typer.main.get_command(app)) == OPTIONS


@pytest.fixture
def recipe(tiny, tmp_path):
    def write(quantization="nf4"):
        path = tmp_path / "tiny.yaml"
        path.write_text(RECIPE.format(model=tiny(), quantization=quantization, data=DATA))
        return path

    return write


def test_a_run_is_gone_on_with_and_extended_by_its_name(call, recipe):
    assert call("train", recipe(), "--out", "run", "train.max_steps=2", "train.save_every=1").code == 0
    assert "already complete at step 2" in call("train", "run", "--resume").err
    longer = call("train", "run", "--resume", "--more-steps", 1, "--more-rate", "held", "--json")
    assert longer.document["step"] == 3 and longer.document["name"] == "run"
    assert "extended from 2 to 3 steps, in which the rate is the last one (held)" in longer.err
    assert call("train", "run", "--resume", "--dry-run", "--json").document["steps"] == 3
    refused = call("train", "run", "--resume", "optimizer.lr=1.0")
    assert refused.code == 2 and "optimizer.lr: 0.01 -> 1.0" in refused.err


def test_train_eval_merge_without_naming_a_run(call, recipe, tmp_path):
    """The latest run is meant; the merged folder is a plain transformers model with the adapter's perplexity."""
    trained = process("train", recipe(), "--json", folder=tmp_path)
    assert trained.returncode == 0, trained.stderr
    result = json.loads(trained.stdout)
    assert result["step"] == 6
    run = tmp_path / "runs" / result["name"]
    for name in (
        "recipe.yaml",
        "run.json",
        "plan.json",
        "metrics.jsonl",
        "result.json",
        "adapter",
        "checkpoints",
    ):
        assert (run / name).exists(), name

    scored = call("eval", "--baseline", "--json")
    assert scored.code == 0, scored.err
    scores = scored.document
    assert scores["adapter"]["loss"]["loss"] < scores["baseline"]["loss"]["loss"]
    assert (run / "eval" / "adapter.json").is_file()

    merged = call("merge", "--out", "model/")
    assert merged.code == 0, merged.err
    fidelity = json.loads((tmp_path / "model" / "fidelity.json").read_text())
    assert fidelity["kl_mean"] < 1e-6
    assert fidelity["loss_difference"] == pytest.approx(0, abs=1e-5)
    loss = plain_loss(tmp_path / "model", fidelity["rows"])
    assert loss == pytest.approx(fidelity["loss_adapter"], abs=1e-4)

    again = call("merge", "--out", "model/")
    assert again.code == 2
    assert again.err.startswith("error: --out model: is not an empty folder")


def plain_loss(folder: Path, rows: int) -> float:
    """Mean loss of the answers by transformers alone, its tokenizer and template read from the merged folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    total = count = 0
    for line in (DATA / "test.jsonl").read_text().splitlines()[:rows]:
        row = json.loads(line)
        turns = [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["completion"]},
        ]
        prompt = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=False)
        whole = tokenizer.apply_chat_template(turns, return_dict=False)
        whole = whole[: len(whole) - whole[::-1].index(tokenizer.eos_token_id)]  # up to the stop token
        ids = torch.tensor([whole])
        labels = ids.clone()
        labels[:, : len(prompt)] = -100
        with torch.no_grad():
            n = len(whole) - len(prompt)
            total += float(model(input_ids=ids, labels=labels).loss) * n
            count += n
    return total / count


def test_merging_onto_the_original_weights_misses_a_strict_tolerance_with_6(call, recipe, tmp_path):
    assert call("train", recipe(), "--out", "run", "export.tolerance=1e-9").code == 0
    merged = call("merge", "run", "--out", "model", "--onto", "original")
    assert merged.code == 6
    assert merged.err.splitlines()[-1].startswith("error: model: the merged model is")
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_dry_run_counts_exactly(call, recipe):
    plan = call("train", recipe(), "--dry-run", "--json")
    assert plan.code == 0, plan.err
    trained = call("train", recipe(), "--json").document
    assert plan.document["trainable_parameters"] == trained["trainable"]
    assert plan.document["steps"] == trained["step"]
    assert plan.document["memory_bytes"]["optimizer_state"] == 8 * trained["trainable"]


def test_dry_run_loads_no_weights(call, recipe, tiny, tmp_path):
    """It passes beside a model of which nothing but configuration and tokenizer are there."""
    path = recipe()
    bare = shutil.copytree(tiny(), tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    assert call("train", path, "--dry-run", f"model.name={bare}").code == 0
    assert call("train", path, f"model.name={bare}").code != 0


CASES = [
    (["train", "nowhere.yaml"], 2, "nowhere.yaml"),
    (["train", "RECIPE", "--more-steps", "4"], 2, "--more-steps: belongs to a finished run"),
    (["train", "RECIPE", "--more-steps", "4", "--more-rate", "up"], 2, "--more-rate up: choose stretched"),
    (["train", "RECIPE", "--more-rate", "held"], 2, "add --more-steps N"),
    (["train", "RECIPE", "adapter.rnak=3"], 2, "command line: adapter.rnak: "),
    (
        ["train", "RECIPE", "adapter.targets=[q_prj]"],
        2,
        "adapter.targets: pattern 'q_prj' matches no linear layer",
    ),
    (["train", "RECIPE", "data.too_long=error", "train.max_length=32"], 3, "data.too_long: "),
    (["train", "RECIPE", "train.device=cuda"], 2, "train.device: no CUDA device"),
    (["train", "RECIPE", "model.name=pkg:no_such_package/x.gguf"], 2, "model.name: package no_such_package"),
    (["eval"], 2, "no run with a checkpoint"),
    (["eval", "no-such-run"], 2, "no-such-run is not a run folder"),
    (["merge", "--out", "x"], 2, "no run with a checkpoint"),
    (["inspect", "no-such-run"], 2, "no-such-run is not a run folder"),
    (["report", "no-such-run"], 2, "no-such-run is not a run folder"),
    (["recipes", "validate", "nowhere.yaml"], 2, "nowhere.yaml"),
]


@pytest.mark.parametrize(
    ("arguments", "code", "message"), CASES, ids=lambda v: "-".join(v) if isinstance(v, list) else ""
)
def test_a_failure_is_one_line_with_its_own_exit_code(call, recipe, arguments, code, message):
    if torch.cuda.is_available() and "train.device=cuda" in arguments:
        pytest.skip("there is a GPU")
    done = call(*[recipe() if a == "RECIPE" else a for a in arguments])
    assert done.code == code, done.err
    assert "Traceback" not in done.err
    errors = [line for line in (done.err + done.out).splitlines() if message in line]
    assert errors


def test_version_and_env(call):
    from lrft import __version__

    assert call("--version").out == f"lrft {__version__}\n"
    assert call("env", "--json").document
