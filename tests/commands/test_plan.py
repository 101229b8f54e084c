"""`lrft plan` as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from lrft.api.training import memory
from lrft.recipe.load import load_recipe

LLAMA = "model.name=meta-llama/Meta-Llama-3-8B"
LORA = "recipes/smoke/lora.yaml"


@pytest.fixture(scope="module")
def root():
    from pathlib import Path

    return Path(__file__).parents[2]


def test_a_plan_that_does_not_fit_names_edits_that_do(call, root):
    long = ("model.dtype=bfloat16", "train.batch_size=8", "train.max_length=2048")
    found = call("plan", root / LORA, LLAMA, *long, "--device", "24GiB")
    assert found.code == 0, found.err
    assert "training does not fit into 24.00 GiB of a GPU (--device): " in found.out
    assert "  model.activation_checkpointing=true\n" in found.out
    assert "rows are taken as full: 8 of 2048 tokens in a micro-batch, every token learnt" in found.out


def test_a_plan_is_one_document_with_the_numbers_of_its_text(call, root):
    found = call("plan", root / LORA, LLAMA, "model.dtype=bfloat16", "--device", "24GiB", "--json").document
    peak = found["peaks"]["train"]
    assert found["fits"]["train"] and found["edits"] == []
    assert found["margin"] == 24 * 2**30 - peak["total"]
    assert found["base_parameters"] == 8_030_261_248


def test_what_a_plan_leaves_out_is_said_in_a_line(call, root):
    found = call("plan", root / LORA, LLAMA, "--device", "80GiB", "train.shard_base=true").out
    assert "- one process is planned, which holds the whole base; train.shard_base is left out" in found
    found = call("plan", root / LORA, LLAMA, "--device", "80GiB", "model.compile=true").out
    assert "- the model is planned as it runs without torch.compile" in found and "shard_base" not in found


# What takes long to import and only other commands need, and what of lrft itself brings it along.
NEVER = {
    *(
        "sympy",
        "networkx",
        "torch._dynamo",
        "torch._inductor",
        "torch.fx.experimental.symbolic_shapes",
        "torch.onnx",
    ),
    *("transformers", "tokenizers", "datasets", "pyarrow", "pandas", "scipy", "requests", "httpx"),
    *("accelerate", "peft", "bitsandbytes", "opacus", "flwr", "ray", "matplotlib"),
    *(
        "lrft.build.adapt",
        "lrft.build.text",
        "lrft.build.dataset",
        "lrft.data.tokenize",
        "lrft.training.loop",
    ),
    *("lrft.api.planning.predict", "lrft.api.training", "lrft.lab", "lrft.serve"),
}


@pytest.mark.parametrize(
    ("more", "fails"),
    [
        ([], False),
        (["train.batch_size=8", "train.max_length=2048"], True),
        (["train.device=cpu"], False),
        (["train.device=cpu", "adapter={method: dora, dropout: 0.05}", "quantization=none"], False),
    ],
)
def test_a_plan_imports_nothing_that_only_other_commands_need(root, more, fails):
    """Most of it takes longer than the plan itself; edits that make a recipe fit need no more than the plan."""
    words = ["plan", str(root / LORA), LLAMA, "model.dtype=bfloat16", "--device", "24GiB", *more]
    code = (
        "import sys; from lrft.cli import app\n"
        f"app({words!r}, standalone_mode=False)\n"
        f"sys.exit(', '.join(sorted({NEVER!r} & sys.modules.keys())) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "peak of training" in done.stdout and ("training does not fit" in done.stdout) == fails


def test_a_size_that_is_none_is_a_usage_error(call, root):
    found = call("plan", root / LORA, LLAMA, "--device", "plenty", "--json")
    assert found.code == 2
    assert found.document["error"]["message"] == "--device: 'plenty' is no size; write it as 24GiB or 80GB"


def test_a_dry_run_has_the_peaks_of_its_own_rows(call, root, tiny):
    small = (f"model.name={tiny()}", "data.train.limit=20", "data.eval.limit=4", "train.device=cpu")
    found = call("train", root / LORA, *small, "--dry-run", "--json").document
    assert found["peaks"]["train"]["optimizer_state"] == found["memory_bytes"]["optimizer_state"]
    assert found["memory"] == ""  # it fits


def test_a_dry_run_of_another_family_says_why_it_has_no_peaks(call, root, tiny):
    small = (f"model.name={tiny('gpt2')}", "data.train.limit=20", "data.eval.limit=4", "train.device=cpu")
    found = call("train", root / LORA, *small, "--dry-run", "--json").document
    assert found["peaks"] is None and "model_type gpt2" in found["memory"]
    assert "dry-run" not in found["memory"]  # which this is


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried"
        ),
        MemoryError(),
    ],
)
def test_running_out_of_memory_is_told_with_the_plan(tiny, root, error):
    recipe = load_recipe(root / LORA, [f"model.name={tiny()}", "train.batch_size=4"]).recipe
    told = pytest.raises(
        memory.OutOfMemory, match=r"^out of memory: training takes about .* train.batch_size=2 "
    )
    with told, memory.memory_advice(recipe):
        raise error


def test_other_errors_pass_through(tiny, root):
    recipe = load_recipe(root / LORA, [f"model.name={tiny()}"]).recipe
    with pytest.raises(RuntimeError, match=r"^something else$"), memory.memory_advice(recipe):
        raise RuntimeError("something else")


def test_of_an_unknown_family_the_edits_are_listed_without_numbers(tiny, root):
    recipe = load_recipe(root / LORA, [f"model.name={tiny('gpt2')}", "train.batch_size=2"]).recipe
    text = memory.advice(recipe)
    assert text.startswith(
        "in the order that costs least: train.batch_size=1 train.gradient_accumulation=2 ("
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("of", "case"),
    [
        ("train", "lora"),
        ("train", "full, recomputed, adamw8bit"),
        ("train", "full, private"),
        ("eval", "lora"),
        ("merge", "lora"),
    ],
)
def test_measured_peaks_are_within_a_tenth_of_the_planned(root, of, case):
    if sys.platform != "linux":
        pytest.skip("resident memory is read from /proc")
    command = [sys.executable, root / "scripts" / "check_plan.py", "--of", of, "--only", case]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.dumps(case)[1:-1] in done.stdout
