"""One step's arithmetic: accumulation, packing, processes, clipping, and the stop at a number that is none."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from lrft.api.training.train import train
from lrft.build.adapt import adapt
from lrft.build.dataset import read_text
from lrft.build.job import assemble
from lrft.core.callback import TimedMethod
from lrft.core.context import share_done
from lrft.ops import compiled, elementwise
from lrft.recipe.load import load_recipe
from lrft.recipe.resolved import recipe_hash
from lrft.registry.errors import NumericalError, OutOfMemory, RecipeError
from lrft.training import gradient_sum
from lrft.training.device import make_accelerator
from lrft.training.folder import RunFolder
from lrft.training.gradient_sum import GradientSum
from lrft.training.loop import train_steps
from lrft.training.step import clip_gradients, overflowed, step_loss, unscale_gradients
from tests.launched import by_launcher


def job_of(recipe_file, tmp_path, *overrides, dtype="float32", accelerator=None):
    recipe = load_recipe(recipe_file(dtype), ["adapter.dropout=0", *overrides]).recipe
    text = read_text(recipe)
    adaptation = adapt(recipe)
    accelerator = accelerator or make_accelerator("cpu", dtype)
    job = assemble(recipe, RunFolder(tmp_path / "run"), text, adaptation, accelerator, recipe_hash(recipe))
    torch.manual_seed(5)
    with torch.no_grad():
        for info in job.run.parameters:
            info.param.add_(0.05 * torch.randn_like(info.param))
    return job


def loss_and_gradients(job):
    loss = step_loss(job.run, next(iter(job.steps())), job.objective)
    return loss, {info.name: info.param.grad for info in job.run.parameters}


def whole_epoch(recipe_file, tmp_path, *overrides, **more):
    """Loss and gradients of one step that holds all eight rows."""
    return loss_and_gradients(job_of(recipe_file, tmp_path, "data.train.limit=8", *overrides, **more))


@pytest.fixture
def as_process(monkeypatch):
    """`as_process(rank)`: what a run sees of two processes that have nothing to send each other."""
    monkeypatch.setattr(gradient_sum, "_begin_sum", lambda flat: SimpleNamespace(wait=lambda: None))
    return lambda rank: SimpleNamespace(
        num_processes=2, process_index=rank, reduce=lambda part, reduction: part
    )


PENALIZED = {
    "orthogonality": ["adapter={method: svd_lora, rank: 4}", "allocate={method: adalora, target_rank: 2}"],
    "load balancing": ["adapter={method: loramoe, rank: 2, experts: 2, dropout: 0.1}"],
    "dropout": ["adapter.dropout=0.2"],
    "hidden tokens": ["objective={method: masked_thought, probability: 0.5, ramp: 0}"],
}


@pytest.mark.parametrize("overrides", PENALIZED.values(), ids=PENALIZED)
@pytest.mark.parametrize("rows", [5, 7])
def test_a_short_last_step_is_the_same_on_two_processes_as_on_one(
    recipe_file, tmp_path, as_process, overrides, rows
):
    """Of four rows a step: with five the second process has none left, with seven it has fewer than the first."""
    same = [*overrides, f"data.train.limit={rows}", "train.packing=false", "train.max_steps=12"]

    def last_step(*more, accelerator=None):
        job = job_of(recipe_file, tmp_path, *same, *more, accelerator=accelerator)
        job.run.step = 1
        job.run.seed_step()
        for method in job.run.callbacks:
            if isinstance(method, TimedMethod):
                method.start(job.run)
        loss = step_loss(job.run, next(iter(job.steps())), job.objective)
        drawn = torch.rand(())
        grads = {
            i.name: torch.zeros(()) if i.param.grad is None else i.param.grad for i in job.run.parameters
        }
        return loss, grads, drawn

    one, expected, drawn = last_step("train.gradient_accumulation=2")
    parts = [last_step("train.gradient_accumulation=1", accelerator=as_process(rank)) for rank in range(2)]
    assert [part[2] for part in parts] == [drawn, drawn]  # what draws after the backward pass draws alike
    torch.testing.assert_close(parts[0][0] + parts[1][0], one, atol=1e-6, rtol=1e-6)
    for name, gradient in expected.items():
        torch.testing.assert_close(parts[0][1][name] + parts[1][1][name], gradient, atol=1e-6, rtol=1e-4)


def test_what_has_a_gradient_on_no_process_keeps_none(recipe_file, tmp_path, as_process):
    job = job_of(recipe_file, tmp_path, accelerator=as_process(1))
    job.run.parameters[0].param.requires_grad_(False)
    step_loss(job.run, next(iter(job.steps())), job.objective)
    job.run.parameters[0].param.requires_grad_(True)
    GradientSum([info.param for info in job.run.parameters]).finish()
    assert job.run.parameters[0].param.grad is None
    assert all(info.param.grad.any() for info in job.run.parameters[2:] if info.role == "lora_B")


@pytest.mark.parametrize("attention", ["eager", "sdpa", "segmented"])
def test_eight_times_one_is_one_times_eight_is_packed(recipe_file, tmp_path, attention):
    backend = f"model.attention={attention}"
    many = ["train.packing=false", "train.batch_size=1", "train.gradient_accumulation=8", backend]
    one = ["train.packing=false", "train.batch_size=8", "train.gradient_accumulation=1", backend]
    packed = [
        "train.packing=true",
        "train.batch_size=8",
        "train.gradient_accumulation=1",
        "train.max_length=300",
        backend,
    ]
    reference, expected = whole_epoch(recipe_file, tmp_path, *one)
    for other in (many, packed):
        loss, gradients = whole_epoch(recipe_file, tmp_path, *other)
        torch.testing.assert_close(loss, reference, atol=1e-6, rtol=1e-6)
        for name, gradient in expected.items():
            torch.testing.assert_close(gradients[name], gradient, atol=1e-6, rtol=1e-4)


JOINED = {
    "llama": ("llama", []),
    "gemma2": ("gemma2", []),
    "gpt2": ("gpt2", []),
    "qwen2, packed": ("qwen2", ["train.packing=true", "train.max_length=170"]),
    "virtual tokens": ("llama", ["adapter={method: prompt_tuning, tokens: 3}", "~adapter.dropout"]),
    "load balancing": ("llama", ["adapter={method: loramoe, rank: 2, experts: 2}"]),
    "experts of its own": ("mixtral", []),
}


@pytest.mark.parametrize(("family", "overrides"), JOINED.values(), ids=JOINED)
def test_rows_without_padding_give_the_loss_and_gradients_of_padded_ones(
    recipe_file, tmp_path, monkeypatch, family, overrides
):
    recipe_file = partial(recipe_file, family=family)
    cut = ["train.packing=false", "train.batch_size=8", "train.gradient_accumulation=1", *overrides]
    job = job_of(recipe_file, tmp_path, "data.train.limit=8", *cut)
    batches = [batch for step in job.steps() for batch in step.micro_batches]
    assert {batch.input_ids.shape for batch in batches} == {(1, batches[0].tokens)}
    joined, gradients = whole_epoch(recipe_file, tmp_path, *cut)
    monkeypatch.setattr("lrft.build.settle.why_padded", lambda *args: "as asked")
    padded, expected = whole_epoch(recipe_file, tmp_path, *cut)
    torch.testing.assert_close(joined, padded, atol=1e-6, rtol=1e-6)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, atol=2e-6, rtol=1e-3)


def test_a_run_says_in_one_line_why_its_rows_are_padded(recipe_file):
    def notes(*overrides):
        adaptation = adapt(load_recipe(recipe_file("float32"), ["adapter.dropout=0", *overrides]).recipe)
        return adaptation.joined, adaptation.notes

    padded = (
        "train.packing: false, and rows are padded (sdpa attention computes every pair of tokens of a row)"
    )
    assert notes("train.packing=false") == (True, [])
    assert notes("train.packing=true", "model.attention=sdpa") == (False, [])
    assert notes("train.packing=false", "model.attention=sdpa") == (False, [padded])


def test_activation_checkpointing_changes_no_gradient(recipe_file, tmp_path):
    plain, expected = whole_epoch(recipe_file, tmp_path)
    loss, gradients = whole_epoch(recipe_file, tmp_path, "model.activation_checkpointing=true")
    assert torch.equal(loss, plain)
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient)


def test_the_loss_is_transformers_own_over_the_labels(recipe_file, tmp_path):
    job = job_of(
        recipe_file, tmp_path, "train.packing=false", "train.batch_size=1", "train.gradient_accumulation=1"
    )
    batches = next(iter(job.steps()))
    (batch,) = batches.micro_batches
    labels = torch.full_like(batch.input_ids, -100).flatten()
    labels[batch.supervised + 1] = batch.targets
    job.run.model.hf.set_attn_implementation("eager")
    theirs = job.run.model.hf(input_ids=batch.input_ids, labels=labels.view_as(batch.input_ids)).loss
    job.run.model.hf.set_attn_implementation("segmented")
    torch.testing.assert_close(step_loss(job.run, batches, job.objective), theirs.detach())


def test_whoever_computes_a_step_may_ask_how_much_of_the_run_is_done(recipe_file, tmp_path):
    job, seen = job_of(recipe_file, tmp_path, "data.train.limit=8"), []
    job.run.model.hf.get_input_embeddings().register_forward_pre_hook(lambda *_: seen.append(share_done()))
    job.run.step = job.run.planned_steps // 2
    loss_and_gradients(job)
    assert set(seen) == {job.run.step / job.run.planned_steps} and share_done() is None


def test_a_callback_may_compute_the_loss_of_the_step_that_begins(recipe_file, tmp_path):
    class Asks(TimedMethod):
        def before_step(self, run):
            asked.append(float(run.closure()))
            run.optimizer.zero_grad(set_to_none=True)

        def after_step(self, run):
            taken.append(run.metrics["loss"])

    asked, taken = [], []
    job = job_of(recipe_file, tmp_path, "data.train.limit=8", "train.max_steps=2")
    job.run.callbacks = [Asks(None)]
    train_steps(job.run, job.steps(), job.objective)
    assert asked == taken and len(set(taken)) == len(taken) == 2


def test_clipping_scales_to_the_limit_and_reports_the_norm_before(recipe_file, tmp_path):
    job = job_of(recipe_file, tmp_path, "train.clip=0.01")
    loss_and_gradients(job)
    before = torch.cat([info.param.grad.flatten() for info in job.run.parameters]).norm()
    reported = clip_gradients(job.run)
    after = torch.cat([info.param.grad.flatten() for info in job.run.parameters]).norm()
    assert float(reported) == pytest.approx(float(before))
    assert float(after) == pytest.approx(0.01, rel=1e-3)


def test_a_non_finite_loss_stops_before_the_weights_are_touched(recipe_file, tmp_path, monkeypatch):
    from lrft.training import loop

    kept = {}

    def poisoned(run, batches, objective):
        loss = step_loss(run, batches, objective)
        if run.step == 2:
            kept.update({info.name: info.param.detach().clone() for info in run.parameters})
            kept["run"] = run
            return loss * float("nan")
        return loss

    monkeypatch.setattr(loop, "step_loss", poisoned)
    with pytest.raises(NumericalError, match=r"step 3: loss nan.*the weights were not touched") as stopped:
        train(load_recipe(recipe_file()), tmp_path / "run", resume=False)
    assert stopped.value.exit_code == 4
    batch = load_file(tmp_path / "run" / "non-finite-step-3-process-0.safetensors")
    assert 160 < batch["0.input_ids"].shape[1] <= 320  # two rows that hold at most 160 tokens each, joined
    assert "non-finite-step-3" in str(stopped.value)
    run = kept.pop("run")
    assert all(torch.equal(kept[info.name], info.param) for info in run.parameters)
    assert [json.loads(x)["step"] for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()] == [
        1,
        2,
    ]


def test_a_non_finite_base_is_named_by_its_module(recipe_file, tmp_path, monkeypatch):
    from lrft.api.training import begin as jobs

    original = jobs.adapt

    def broken(*args, **kwargs):
        found = original(*args, **kwargs)
        found.model.hf.model.layers[1].mlp.down_proj.base.bias = torch.full(
            (64,), float("inf"), dtype=torch.bfloat16
        )
        return found

    monkeypatch.setattr(jobs, "adapt", broken)
    with pytest.raises(NumericalError, match=r"first in the output of .*layers\.1\.mlp\.down_proj"):
        train(load_recipe(recipe_file(), ["~train.eval_every"]), tmp_path / "run", resume=False)


@pytest.mark.parametrize("name", ["llava_mole", "mola"])
def test_experts_that_the_first_steps_tokens_leave_in_turn_stop_no_run(tiny, tmp_path, name):
    """All tokens go to one expert in step 1 and to others in step 2, of which A has no gradient while B is 0."""
    smoke = Path(__file__).parents[2] / "recipes" / "smoke" / f"{name}.yaml"
    small = [
        f"model.name={tiny(tied=False, bias=True)}",
        "model.dtype=float32",
        "train.device=cpu",
        "train.seed=3",
    ]
    small += ["optimizer.lr=0.01", "schedule=constant", "train.max_steps=3", "train.batch_size=4"]
    small += ["train.max_length=200", "adapter.dropout=0", "data.train.limit=24", "data.eval.limit=4"]
    train(load_recipe(smoke, small), tmp_path / "run", resume=False)
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_tensor_without_a_gradient_stops_the_run_by_name(recipe_file, tmp_path, monkeypatch):
    from lrft.methods.adapters.lora import LoRA

    def no_update(self, x, base):
        if "layers.1.mlp.up_proj" in self.site.name:
            return base(x) + 0 * (x @ self.A.to(x.dtype).mT @ self.B.to(x.dtype).mT)
        return original(self, x, base)

    original = LoRA.forward
    monkeypatch.setattr(LoRA, "forward", no_update)
    with pytest.raises(
        NumericalError, match=r"2 of 28 trainable tensors have had no gradient.*layers.1.mlp.up_proj"
    ):
        train(load_recipe(recipe_file()), tmp_path / "run", resume=False)


@pytest.mark.slow  # by the launcher and the command; test_sharded.py has two processes for every change
def test_two_processes_give_the_losses_of_one(recipe_file, tmp_path):
    """gloo on the CPU: the same global batch, cut between two processes."""
    recipe = recipe_file("float32")
    shared = [str(recipe), "adapter.dropout=0"]
    one, two = tmp_path / "one", tmp_path / "two"
    train(load_recipe(recipe, ["adapter.dropout=0", "train.gradient_accumulation=2"]), one, resume=False)
    words = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "lrft", "train", *shared]
    done = by_launcher(*words, "train.gradient_accumulation=1", "--out", two)
    assert done.returncode == 0, done.stderr[-3000:]
    a, b = (losses(folder) for folder in (one, two))
    assert len(a) == len(b) == 8
    for x, y in zip(a, b, strict=True):
        assert x == pytest.approx(y, rel=2e-6)


@pytest.mark.parametrize("name", ["DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"])
def test_what_accelerate_is_asked_for_and_lrft_has_not_is_refused(name, recipe_file, tmp_path, monkeypatch):
    """Also on a CPU, where accelerate itself would leave it out and train plain copies."""
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(RecipeError, match=r"is not supported; start plain processes.*train\.shard_base"):
        train(load_recipe(recipe_file("float32")), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_two_launchers_as_of_two_machines_give_the_losses_of_one_process(launcher, recipe_file, tmp_path):
    """One process each, which meet at an address, as nodes of a cluster do."""
    recipe = recipe_file("float32")
    train(
        load_recipe(recipe, ["adapter.dropout=0", "train.gradient_accumulation=2"]),
        tmp_path / "one",
        resume=False,
    )
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    words = ["-m", "lrft", "train", str(recipe), "adapter.dropout=0", "train.gradient_accumulation=1"]
    words += ["train.device=cpu", "--out", str(tmp_path / "two")]
    started = []
    for rank in ("0", "1"):
        if launcher == "torchrun":
            command = ["torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", f"--node-rank={rank}"]
            command += ["--master-addr=127.0.0.1", f"--master-port={port}"]
        else:
            command = ["accelerate.commands.launch", "--multi_gpu", "--num_machines=2", "--num_processes=2"]
            command += [
                f"--machine_rank={rank}",
                "--main_process_ip=127.0.0.1",
                f"--main_process_port={port}",
            ]
            command += ["--mixed_precision=no", "--dynamo_backend=no"]
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", *command, *words], env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
        )
    try:
        assert [process.wait(250) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
    assert json.loads((tmp_path / "two" / "run.json").read_text())["processes"] == 2
    a, b = (losses(tmp_path / name) for name in ("one", "two"))
    assert a == pytest.approx(b, rel=2e-6) and len(a) == 8


# Some of every axis, those first that look at gradients, routing or state in a way of their own, or draw.
DIVIDED = [
    "adalora",
    "increlora",
    "dora_rank",
    "relora",
    "periodic",
    "galore",
    "frugal",
    "lora_pro",
    "lisa",
    "badam",
]
DIVIDED += ["mezo", "mola", "mixlora", "loramoe", "dpo", "dylora", "lora_ga", "eva", "corda", "loftq"]
DIVIDED += ["codyra", "gated_lora", "masked_thought", "xlora", "cola", "spafit"]
DIVIDED += ["greentrainer", "sparselora", "loramoe_types", "smore", "llava_mole"]


@pytest.mark.slow
def test_every_kind_of_method_gives_on_two_processes_what_it_gives_on_one(on_tiny, tmp_path):
    """Losses and tensors. Of five rows, four a step, every second step leaves one process without a row."""
    recipes = Path(__file__).parents[2] / "recipes" / "smoke"
    launched: list[str] = []
    for name in DIVIDED:
        path = recipes / f"{name}.yaml"
        same = [*on_tiny(path), "data.train.limit=5", "data.eval.limit=4", "train.device=cpu"]
        same += ["train.max_steps=5", "train.max_length=200", "train.batch_size=2", "train.packing=false"]
        one = load_recipe(path, [*same, "train.gradient_accumulation=2"])
        train(one, tmp_path / "one" / name, resume=False)
        launched += ["--", str(path), str(tmp_path / "two" / name), *same, "train.gradient_accumulation=1"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(Path(__file__).with_name("on_two_processes.py")), *launched[1:]]
    done = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name in DIVIDED:
        a, b = losses(tmp_path / "one" / name), losses(tmp_path / "two" / name)
        assert len(a) == len(b) == 5, (name, done.stderr[-2000:])
        assert a == pytest.approx(b, rel=2e-5), name
        ours, theirs = (trained(tmp_path / many / name) for many in ("one", "two"))
        assert ours.keys() == theirs.keys()
        for key, tensor in ours.items():
            torch.testing.assert_close(
                theirs[key], tensor, atol=1e-4, rtol=1e-3, msg=lambda m, k=key, n=name: f"{n} {k}: {m}"
            )


def trained(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / "step-5" / "adapter.safetensors")


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_loss_scale_changes_no_update(recipe_file, tmp_path):
    """A power of two is exact in float32, so scaled and unscaled gradients are the same bits."""
    plain, scaled = job_of(recipe_file, tmp_path), job_of(recipe_file, tmp_path)
    scaled.run.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for job in (plain, scaled):
        step_loss(job.run, next(iter(job.steps())), job.objective)
        unscale_gradients(job.run)
    for a, b in zip(plain.run.parameters, scaled.run.parameters, strict=True):
        assert torch.equal(a.param.grad, b.param.grad)


def test_an_overflow_under_a_loss_scale_is_skipped_and_halves_it(recipe_file, tmp_path):
    job = job_of(recipe_file, tmp_path)
    job.run.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    loss = step_loss(job.run, next(iter(job.steps())), job.objective)
    job.run.parameters[0].param.grad[0, 0] = float("inf")
    unscale_gradients(job.run)
    assert overflowed(job.run, float(loss))
    assert job.run.scaler.get_scale() == 2.0
    assert not overflowed(job.run, float("nan"))


def test_running_out_of_memory_names_what_to_lower(recipe_file, tmp_path, monkeypatch):
    from lrft.training import loop

    def greedy(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loop, "step_loss", greedy)
    with pytest.raises(
        OutOfMemory,
        match=r"^out of memory: training takes about 0.\d+ GiB in the \w+ .*; train.batch_size=1 "
        r"train.gradient_accumulation=4 takes 0.\d+ GiB .the same result, in smaller micro-batches.$",
    ) as stopped:
        train(load_recipe(recipe_file()), tmp_path / "run", resume=False)
    assert stopped.value.exit_code == 5


@pytest.mark.slow
@pytest.mark.parametrize(
    "changed",
    [
        [],
        ["prune={method: loraprune, ratio: 0.5, every: 1, whole_first: 0.0, whole_last: 0}"],
        ["prune={method: loram, ratio: 0.5, whole_first: 0, whole_last: 0}"],
        ["trainable=full", "adapter=null", "quantization=none", "prune={method: trp, every: 2}"],
    ],
    ids=["plain", "loraprune", "loram", "trp"],
)
def test_compiled_training_follows_eager(recipe_file, tmp_path, changed):
    dropout = [] if "adapter=null" in changed else ["adapter.dropout=0"]
    overrides = [*changed, *dropout, "train.max_steps=3", "model.attention=sdpa"]
    train(load_recipe(recipe_file("float32"), overrides), tmp_path / "eager", resume=False)
    train(
        load_recipe(recipe_file("float32"), [*overrides, "model.compile=true"]),
        tmp_path / "compiled",
        resume=False,
    )
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), rel=1e-4)


def test_a_run_whose_compiler_fails_goes_on_eagerly_and_says_so_once(
    recipe_file, tmp_path, monkeypatch, capsys
):
    def fail(*args, **kwargs):
        raise RuntimeError("no space left for what is compiled")

    wanted, _ = whole_epoch(recipe_file, tmp_path / "eager")
    for fused in (elementwise._normalize_plainly, elementwise._rotate_plainly, elementwise._gate_up):
        monkeypatch.setattr(fused, "_compiled", None)  # of a test before this one
    monkeypatch.setattr(torch, "compile", lambda *args, **kwargs: fail)
    job = job_of(recipe_file, tmp_path / "compiled", "data.train.limit=8")
    job.run.compiled, job.run.kernels = True, None
    capsys.readouterr()
    try:
        loss, _ = loss_and_gradients(job)
        step_loss(job.run, next(iter(job.steps())), job.objective)
    finally:
        compiled.FAILURES.clear()
    assert torch.equal(loss, wanted) and not job.run.compiled
    assert capsys.readouterr().err.count("no longer compiled (no space left") == 1
