"""`lrft plan`: what it says is what modules, optimizers and storages hold, and an edit it names is planned again."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lrft.api.planning.ahead import plan_ahead
from lrft.api.planning.fit import changes, device_of, forecast, sentence
from lrft.api.planning.plan import memory_bytes
from lrft.api.planning.rate import find_rate
from lrft.build.at_rest import state_bytes
from lrft.build.edits import _in_order, applied, edits, fitting
from lrft.build.held import Held
from lrft.build.measure import measure, planned
from lrft.build.replanning import TrainingPeaks
from lrft.build.resident import inputs_held, state_held, weights_held
from lrft.core.params import ParamInfo
from lrft.export.fidelity import CHUNK, compare, room
from lrft.model.described import build_skeleton
from lrft.model.load import load_model
from lrft.ops.products import multiplying
from lrft.recipe.load import load_recipe
from lrft.registry.axes import ADAPTERS, OPTIMIZERS, QUANTIZERS
from lrft.registry.errors import RecipeError, UsageError
from lrft.registry.size import parse_size
from tests.kept import computing

LLAMA = "meta-llama/Meta-Llama-3-8B"
GIB = 2**30


def recipe_of(*overrides: str, name: str = LLAMA):
    long = ["adapter.dropout=0"] if "adapter=null" not in overrides else []
    long += ["model.dtype=bfloat16", "train.max_length=2048", "train.batch_size=8", "train.device=auto"]
    found = load_recipe("recipes/smoke/lora.yaml", [f"model.name={name}", *long, *overrides])
    return found.recipe


def train_peak(recipe, kind="cuda", size=80 * GIB):
    return forecast(recipe, {"kind": kind, "bytes": size, "source": "a test"})[0].train


@pytest.fixture(scope="module")
def plain():
    return train_peak(recipe_of())


def test_rooms_of_numbers_in_float32_are_planned_for_on_a_cpu_that_needs_them():
    """LLaMA-3 8B: 8 rows of 2,048 tokens, layers of up to 14,336 by 4,096, and 2^22 numbers of its head at a time."""
    for dropout, inputs in (("0", 2), ("0.05", 3)):
        recipe, peaks = recipe_of(f"adapter.dropout={dropout}"), {}
        for slow in ((), (torch.bfloat16,)):
            with multiplying(slow), computing(False):  # the kernels are for what is multiplied in float32
                peaks[slow] = [train_peak(recipe, kind)["total"] for kind in ("cpu", "cuda")]
        cpu, cuda = (after - before for before, after in zip(*peaks.values(), strict=True))
        assert cpu == 4 * (8 * 2048 * (inputs + 4) * 14_336 + 14_336 * 4_096 + 2**22)
        assert cuda == 0


def test_counts_are_those_of_the_modules_that_training_builds(tiny):
    recipe = recipe_of("train.max_length=64", "adapter=dora", name=str(tiny()))
    real, found = measure(recipe), forecast(recipe, device_of(recipe, "1GiB"))[0].counted
    assert {**found, "targets": real["targets"]} == {**real, "targets": real["targets"]}
    assert [row["modules"] for row in found["targets"]] == [row["modules"] for row in real["targets"]]


@pytest.mark.parametrize("name", ADAPTERS.names())
def test_every_adapter_is_planned_on_models_that_have_no_code_of_transformers(on_tiny, name):
    """As `lrft plan` and `--dry-run` do, with the very layers whose peak they tell."""
    path = Path("recipes/smoke") / f"{name}.yaml"
    recipe = load_recipe(path, [*on_tiny(path), "train.max_length=64", "train.device=cpu"]).recipe
    peaks = forecast(recipe, device_of(recipe, "1GiB"))[0]
    assert peaks.train["total"] > 0 and peaks.counted["trainable"] == measure(recipe)["trainable"] > 0


def test_the_parts_of_a_peak_are_its_total(plain):
    assert sum(size for name, size in plain.items() if name != "total") == plain["total"]
    assert plain["weights"] == 2 * 8_030_261_248
    assert plain["optimizer_state"] == 8 * 10_485_760 // (16 // 4) * (16 // 4)


@pytest.mark.parametrize(
    ("override", "category"),
    [
        ("model.activation_checkpointing=true", "activations"),
        ("train.batch_size=4", "activations"),
        ("train.max_length=1024", "activations"),
        ("quantization=nf4", "weights"),
        ("optimizer=adamw8bit", "optimizer_state"),
    ],
)
def test_each_change_lowers_its_own_category(plain, override, category):
    changed = train_peak(recipe_of(override))
    assert changed[category] < plain[category]


@pytest.mark.parametrize("override", ["adapter.dropout=0.05", "adapter=dora", "model.attention=eager"])
def test_each_change_raises_what_activations_take(plain, override):
    assert train_peak(recipe_of(override))["activations"] > plain["activations"]


def test_full_training_holds_gradients_and_state_of_every_weight():
    full = ("trainable=full", "adapter=null", "init=null", "train.gradient_accumulation=2")
    peak = train_peak(recipe_of(*full))
    assert peak["weights"] == peak["gradients"] == peak["optimizer_state"] // 2


def test_private_steps_are_planned_with_one_row_a_pass_and_the_sums_of_gradients():
    private = ["privacy={noise: 1.0, delta: 1e-6}", "train.packing=false"]
    recipe, one = recipe_of(*private), recipe_of("train.batch_size=1", "train.packing=false")
    where = {"kind": "cuda", "bytes": 80 * GIB, "source": "a test"}
    (found, _), (plain, _) = forecast(recipe, where), forecast(one, where)
    assert found.moment == plain.moment and found.train["activations"] == plain.train["activations"]
    assert found.train["gradients"] - plain.train["gradients"] == 4 * found.counted["trainable"]
    assert not [edit for edit in edits(recipe) if edit.overrides[0].startswith("train.batch_size=")]
    full, _ = forecast(recipe_of(*private, "trainable=full", "adapter=null", "init=null"), where)
    base = full.counted["base"]  # in bfloat16: a row's gradients beside the sums, and their copies in float32
    assert full.moment == "clipping of a row" and full.train["gradients"] == (4 + 2) * base
    assert full.train["working"] == 4 * base
    assert plan_ahead("recipes/smoke/lora.yaml", "24GiB", overrides=[f"model.name={LLAMA}", *private])[
        "assumes"
    ][0].startswith("rows are taken as full: 1 of 256 tokens")


def test_layers_left_to_memory_are_the_fewest_that_fit():
    auto = recipe_of("model.activation_checkpointing=auto")
    counts = [
        forecast(auto, {"kind": "cuda", "bytes": size * GIB, "source": ""})[0].recomputed
        for size in (200, 60, 30)
    ]
    assert counts[0] == 0 < counts[1] < counts[2] < 32


def test_every_edit_named_is_planned_again_and_fits():
    recipe = recipe_of("adapter.dropout=0.05")
    where = device_of(recipe, "22GiB")
    found = changes(recipe, where)
    assert len(found) == 3
    for change in found:
        again = train_peak(applied(recipe, change["overrides"]))["total"]
        assert again == change["total"] == where["bytes"] - change["margin"] <= where["bytes"]


@pytest.mark.parametrize(
    "overrides",
    [(), ("adapter=vera",), ("adapter=null", "init=null", "trainable=full")],
    ids=lambda overrides: overrides[0] if overrides else "lora",
)
def test_edits_on_modules_in_common_take_what_they_take_on_their_own(overrides):
    """VeRA's projections are drawn once and kept, which a second try would not see; so its modules are made anew."""
    recipe, where = recipe_of(*overrides), device_of(recipe_of(), "80GiB")
    several = [edit.overrides for edit in edits(recipe)]
    with ExitStack() as opened:
        peaks = TrainingPeaks("cuda", lambda one: build_skeleton(one.model)[0], opened)
        for one in [(), *several, several[0] + several[-1], ()]:
            found = peaks.total(applied(recipe, one), where["bytes"])
            assert found == forecast(applied(recipe, one), where)[0].train["total"], one
        assert len(peaks.made) < len(several)


def sizes_of(recipe) -> tuple[int, bool, float, str, str, int]:
    settings = recipe.train
    return (
        settings.batch_size,
        recipe.model.activation_checkpointing is True,
        recipe.adapter.dropout,
        recipe.optimizer.method,
        recipe.quantization.method,
        settings.max_length,
    )


def made_up(recipe) -> int:
    """A total that every edit lowers by its own factor."""
    rows, again, dropout, optimizer, storage, length = sizes_of(recipe)
    found = 1000 * rows // 8 * (1 if again else 4) // 4 * length // 2048
    return (
        found
        + (0 if storage == "nf4" else 400)
        + (0 if optimizer == "adamw8bit" else 40)
        + 10 * (dropout > 0)
    )


@pytest.mark.parametrize("limit", [1500, 1000, 700, 450, 200, 80, 60, 30, 5])
def test_no_edit_is_missed_that_fits_and_none_is_planned_that_cannot(limit):
    """Against a search that plans every edit, in the same order; the fewer settings are enough, the fewer plans."""
    recipe, seen = recipe_of("adapter.dropout=0.05"), []

    def plan(edited):
        seen.append(sizes_of(edited))
        return made_up(edited)

    wanted = []
    for edit in _in_order(list(edits(recipe))):
        if len(wanted) < 3 and not any(known.keys <= edit.keys for known in wanted):
            wanted += [edit] if made_up(applied(recipe, edit.overrides)) <= limit else []
    found = fitting(recipe, limit, plan)
    assert [one.edit for one in found] == wanted
    assert all(one.total == made_up(applied(recipe, one.edit.overrides)) for one in found)
    assert len(seen) <= 24 and (limit != 5 or len(seen) <= 8)


def test_an_8b_model_fits_eight_gib_by_three_edits_together():
    recipe = recipe_of("adapter.dropout=0.05")
    (only,) = changes(recipe, device_of(recipe, "8GiB"))
    batch = ["train.batch_size=1", "train.gradient_accumulation=8"]
    assert only["overrides"] == [*batch, "model.activation_checkpointing=true", "quantization.method=nf4"]


def test_the_first_edit_is_the_cheapest_that_fits_alone_or_together():
    recipe = recipe_of()
    first = changes(recipe, device_of(recipe, "40GiB"), 1)[0]
    assert first["overrides"] == ["train.batch_size=2", "train.gradient_accumulation=4"]
    assert train_peak(applied(recipe, ["train.batch_size=4"]))["total"] > 40 * GIB


def test_an_edit_keeps_the_settings_of_the_method_that_it_replaces():
    changed = applied(recipe_of("optimizer.lr=0.003"), ["optimizer.method=adamw8bit"])
    assert (changed.optimizer.method, changed.optimizer.lr) == ("adamw8bit", 0.003)


def test_edits_of_full_training_leave_the_storage_alone():
    keys = {
        key for edit in edits(recipe_of("trainable=full", "adapter=null", "init=null")) for key in edit.keys
    }
    assert "quantization.method" not in keys and "optimizer.method" in keys


@pytest.mark.parametrize(
    ("text", "size"), [("24GiB", 24 * GIB), ("80GB", 80 * 10**9), ("24g", 24 * GIB), ("1.5TiB", 1536 * GIB)]
)
def test_a_size_is_read_with_its_unit(text, size):
    assert parse_size(text, "--device") == size


def test_a_size_without_a_unit_is_not_taken_for_bytes():
    with pytest.raises(
        UsageError, match="--device: '24' is 24 bytes, less than a process takes; write 24GiB"
    ):
        device_of(recipe_of(), "24")


@pytest.mark.parametrize("text", ["", "many", "24 apples", "-3GiB", "0GiB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UsageError, match="is no size; write it as 24GiB or 80GB"):
        parse_size(text, "--device")


def test_the_sentence_of_too_little_memory_has_numbers_and_an_edit():
    recipe = recipe_of()
    where = device_of(recipe, "24GiB")
    text = sentence(recipe, where, forecast(recipe, where)[0])
    assert text.startswith("training takes about ") and "more than the 24.00 GiB (--device)" in text
    assert text.partition("; ")[2].startswith("train.batch_size=1 train.gradient_accumulation=8 fits with ")


@pytest.mark.parametrize("name", ["nf4", "fp4", "int8"])
def test_declared_bits_are_those_of_a_stored_matrix(name):
    config = QUANTIZERS.declared(name).config(method=name)
    layer = QUANTIZERS.get(name)(torch.randn(512, 1024).bfloat16(), None, config=config)
    assert layer.stored_bytes * 8 / (512 * 1024) == pytest.approx(QUANTIZERS.get(name).bits(config), rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_declared_state_is_that_of_a_step(name, dtype):
    config = OPTIMIZERS.declared(name).config(method=name)
    shapes = {
        "lora_A": (16, 512),
        "lora_B": (48, 16),
        "matrix": (256, 384),
        "embedding": (128, 96),
        "vector": (64,),
    }
    infos = [
        ParamInfo(role, torch.nn.Parameter(torch.zeros(shape, dtype=dtype, device="meta")), role)
        for role, shape in shapes.items()
    ]
    declared = [OPTIMIZERS.get(name).state_bytes(info, config) for info in infos]
    if None in declared:
        assert set(declared) == {None}
        return
    from lrft.build.measure import optimizer_bytes

    recipe = recipe_of(f"optimizer={name}", "schedule=constant")
    if "averaged" in OPTIMIZERS.declared(name).provides and dtype != torch.float32:
        with pytest.raises(RecipeError, match="trains in less than float32"):
            optimizer_bytes(recipe, infos)
        return
    assert sum(declared) == optimizer_bytes(recipe, infos)


def test_a_master_copy_counts_as_state(tiny):
    whole = ("trainable={weights: full, update: master}", "adapter=null", "init=null")
    recipe = recipe_of(*whole, "train.max_length=64", name=str(tiny()))
    model, _ = build_skeleton(recipe.model)
    with planned(recipe, model) as found:
        assert state_bytes(recipe, found.infos) == 12 * found.base


def test_bytes_alive_are_counted_and_forgotten():
    x = torch.zeros(1000, 100, device="meta")
    with Held() as held:
        y = x + 1
        z = y * 2
        assert held.now == held.peak == 2 * x.nbytes
        del z
        y.mul_(3)
        assert (held.now, held.peak) == (x.nbytes, 2 * x.nbytes)


@pytest.mark.parametrize("keep", [False, True])
def test_a_shape_found_here_is_the_one_that_torch_finds(keep):
    """What stands in for torch's own rules of shapes and types, on real tensors and without storage."""
    a, b = torch.randn(2, 3, 4).bfloat16(), torch.randn(3, 1)
    calls = [
        lambda x, y: x + y,
        lambda x, y: x * 2.5,
        lambda x, y: 1 - y,
        lambda x, y: y.pow(2),
        lambda x, y: x.float().mean(-1, keepdim=keep),
        lambda x, y: torch.cat([x, x], dim=-1),
        lambda x, y: torch.stack([y, y]),
        lambda x, y: torch.addmm(y.mT, y.mT, torch.ones_like(y) @ y.mT),
        lambda x, y: y.clamp_min(1e-3),
        lambda x, y: torch.tanh(x / 2),
        lambda x, y: torch.log_softmax(y, -1),
        lambda x, y: y.mT @ y,
        lambda x, y: torch.mm(y, y.mT, out=y.new_empty(3, 3)),
        lambda x, y: x.amax(-1, keepdim=keep),
        lambda x, y: x.amax((0, 2), keepdim=keep),
        lambda x, y: x.sum((0, -1), keepdim=keep),
        lambda x, y: x.sum(-1, keepdim=keep, dtype=torch.float32),
        lambda x, y: x.mean((1, 2), keepdim=keep),
        lambda x, y: x.argmax(-1).sum(-1, keepdim=keep),
        lambda x, y: torch.empty_like(x, dtype=torch.float32),
        lambda x, y: torch.zeros_like(x.long()),
        lambda x, y: y.gather(0, (y[:2] * 0).long()),
        lambda x, y: x.index_select(1, (x[0, :2, 0] * 0).long()),
        lambda x, y: x[(x[:, 0, 0] * 0).long()],
        lambda x, y: x[:, (x[0, :2, 0] * 0).long()],
        lambda x, y: x.index_select(-1, (x[0, 0, :1] * 0).long()),
        lambda x, y: torch.softmax(x, -1).topk(3, dim=-1)[1],
        lambda x, y: x.sort(-1)[0],
        lambda x, y: torch.where(x.ge(0), x, x * 2),
        lambda x, y: torch.nn.functional.pad(x, (1, 2, 0, 3)),
        lambda x, y: x.long() // 2,
        lambda x, y: torch.ops.aten.slice_backward(y, [3, 4], 1, 0, 1, 1),
        lambda x, y: x.clamp(max=0.5).sigmoid(),
        lambda x, y: x.index_add(0, (x[:, 0, 0] * 0).long(), x),
    ]
    for call in calls:
        real, meta = call(a, b), None
        with Held():
            meta = call(a.to("meta"), b.to("meta"))
        assert (meta.shape, meta.dtype) == (real.shape, real.dtype)


def run_folder(root: Path, recipe_text: str, rates: list[float], gpu: str | None = None) -> None:
    folder = root / "one"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(recipe_text)
    (folder / "run.json").write_text(json.dumps({"hardware": {"gpu": gpu}, "recomputed_layers": 0}))
    lines = [{"step": n, "tokens_per_second": rate} for n, rate in enumerate(rates, 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_rate_is_that_of_a_run_of_the_same_base_or_none(tmp_path):
    from lrft.recipe.resolved import resolved

    recipe = recipe_of("train.device=cpu")
    assert find_rate(recipe, "cpu", False, tmp_path / "runs") is None
    run_folder(tmp_path / "runs", resolved(recipe), [1.0, 100.0, 110.0, 120.0])
    found = find_rate(recipe, "cpu", False, tmp_path / "runs")
    assert found["tokens_per_second"] == 110 and "3 steps of one" in found["source"]
    assert find_rate(recipe, "cpu", True, tmp_path / "runs")["tokens_per_second"] == pytest.approx(82.5)
    assert find_rate(recipe, "cuda", False, tmp_path / "runs") is None
    assert find_rate(recipe_of(name="Qwen/Qwen2.5-7B"), "cpu", False, tmp_path / "runs") is None


def test_a_plan_imports_no_transformers(tiny):
    import subprocess

    code = (
        "import sys; from lrft.api.planning.ahead import plan_ahead; "
        f"plan_ahead('recipes/smoke/lora.yaml', '24GiB', overrides=['model.name={LLAMA}', 'model.dtype=bfloat16']); "
        f"small = ['model.name={tiny('gpt_oss')}', 'model.dtype=bfloat16', 'train.max_length=64']; "
        "plan_ahead('recipes/smoke/lora.yaml', '24GiB', overrides=[*small, 'model.experts=split']); "
        "print([name for name in ('transformers', 'torch._dynamo', 'datasets', 'bitsandbytes') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_plan_needs_no_rows_and_says_what_it_assumes():
    found = plan_ahead("recipes/smoke/lora.yaml", "24GiB", overrides=[f"model.name={LLAMA}"])
    assert (
        found["assumes"][0] == "rows are taken as full: 1 of 256 tokens in a micro-batch, every token learnt"
    )
    assert found["model_source"] == "the published configuration, packaged with lrft"
    assert set(found["peaks"]) == set(found["fits"]) == {"train", "eval", "merge", "requantize", "gguf"}


def test_what_a_comparison_is_planned_to_take_is_what_it_takes():
    """Two heads over one vocabulary, counted at every call."""
    torch.manual_seed(0)
    tokens, width, vocabulary = 2 * CHUNK, 16, 3000

    def side():
        weight = torch.randn(vocabulary, width)
        head = SimpleNamespace(logits=lambda hidden: hidden @ weight.T)
        return SimpleNamespace(head=head, device="cpu", hidden=lambda _: torch.randn(1, tokens, width))

    every = torch.arange(tokens)
    batch = SimpleNamespace(supervised=every, targets=every, texts=(), to=lambda _: batch)
    with Held() as held:
        compare(side(), side(), [batch])
    weights = 2 * 4 * vocabulary * width
    assert held.peak - weights == pytest.approx(room(tokens, 4 * width, vocabulary), rel=0.1)


def test_what_offload_puts_on_a_disk_is_left_out_while_it_trains_and_no_other_time():
    cpu = ["train.device=cpu", "model.activation_checkpointing=true"]
    full = ["trainable=full", "adapter=null", "init=null"]
    where = {"kind": "cpu", "bytes": 80 * GIB, "source": "a test"}
    found, _ = forecast(recipe_of(*cpu), where)
    away, _ = forecast(recipe_of(*cpu, "offload.weights=disk", "offload.activations=disk"), where)
    linear, head = 2 * 6_979_321_856, 2 * 128_256 * 4096
    norms = 2 * 65 * 4096
    assert away.train["weights"] == 2 * linear // 32 + head + 2 * norms // 32 < found.train["weights"] / 7
    inputs = 2 * 8 * 2048 * 4096
    assert found.train["activations"] - away.train["activations"] == (31 - 4) * inputs
    assert (away.eval, away.merge) == (found.eval, found.merge)
    slow, _ = forecast(recipe_of(*cpu, *full), where)
    stepped, _ = forecast(recipe_of(*cpu, *full, "offload.optimizer=disk"), where)
    assert slow.moment == stepped.moment == "writing of a checkpoint"  # which reads all of the state again
    assert slow.train == stepped.train
    with pytest.raises(RecipeError, match="is written for a CPU"):
        train_peak(recipe_of("offload.weights=disk"))


def test_a_base_that_does_not_fit_a_cpu_may_lie_on_its_disk():
    recipe = recipe_of("train.device=cpu", "train.batch_size=1", "train.max_length=64", "quantization=nf4")
    where = device_of(recipe, "4GiB")
    assert where["kind"] == "cpu" and train_peak(recipe, "cpu")["total"] > where["bytes"]
    (only,) = changes(recipe, where)
    assert only["overrides"] == ["offload.weights=disk"] and only["total"] < where["bytes"]
    assert not [e for e in edits(recipe_of()) if "offload" in e.overrides[0]]


def test_a_dry_run_counts_what_stays_of_a_recipe_that_offloads(tiny):
    again = ["model.activation_checkpointing=true", "train.max_length=64"]
    disk = "offload={weights: disk, activations: disk, optimizer: disk}"
    one, other = (recipe_of(*again, *more, name=str(tiny())) for more in ([], [disk]))
    model = load_model(one.model, meta=True)
    counted = measure(one, model)
    memory, away = (memory_bytes(recipe, model, counted) for recipe in (one, other))
    assert away["linear_weights"] == memory["linear_weights"]  # two layers, both there
    assert (
        away["other_weights"] == memory["other_weights"] == 2 * (520 * 64 + 5 * 64)
    )  # a tied head, and norms
    deep = counted | {
        "linear_bytes": 10 * counted["linear_bytes"],
        "weight_bytes": 10 * counted["weight_bytes"],
    }
    beside = counted["weight_bytes"] - counted["linear_bytes"]
    assert weights_held(other, deep, 20, 0, 10 * beside) == (counted["linear_bytes"], 0)
    assert weights_held(other, deep, 20, 7, 0) == (counted["linear_bytes"], 7 + beside)
    assert inputs_held(other, 20) == 4 < inputs_held(one, 20) == 20
    assert state_held(other, 1000, 20) == 100 < state_held(one, 1000, 20) == 1000


def test_experts_that_are_no_layers_are_there_with_the_layers_that_compute(tiny):
    """Of four layers those of two, where the head alone was counted."""
    recipe = recipe_of(
        "offload.weights=disk", "model.dtype=float32", "train.max_length=64", name=str(tiny("mixtral"))
    )
    model = load_model(recipe.model, meta=True)
    counted, inside = measure(recipe, model), 0
    for name, parameter in model.hf.named_parameters():
        inside += 4 * parameter.numel() if ".layers." in name and "_proj.weight" not in name else 0
    head = 4 * 520 * 64
    assert weights_held(recipe, counted, 2, head, head)[1] == head + inside + 4 * 64
    assert weights_held(recipe, counted, 4, head, head)[1] == head + (inside + 4 * 64) // 2
    assert memory_bytes(recipe, model, counted)["other_weights"] == head + inside + 4 * 64


def test_a_merge_into_few_bits_holds_a_float32_model_and_into_a_file_two(tiny):
    small = ["train.max_length=64", "train.device=cpu"]
    found = forecast(recipe_of(*small, name=str(tiny())), {"kind": "cpu", "bytes": GIB, "source": ""})[0]
    one, two = (found.rounded[name] for name in ("requantize", "gguf"))
    assert two["working"] > 8 * found.counted["base"] and one["working"] > 4 * found.counted["base"]
    assert {k: v for k, v in one.items() if k not in ("working", "total")} == {
        k: v for k, v in found.merge.items() if k not in ("working", "total")
    }
    assert found.by_use().keys() == {"train", "eval", "merge", "requantize", "gguf"}
    other = forecast(recipe_of(*small, name=str(tiny("phi3"))), {"kind": "cpu", "bytes": GIB, "source": ""})[
        0
    ]
    assert other.rounded.keys() == {"requantize"}  # which llama.cpp has no names for here


@pytest.mark.parametrize("adapter", ADAPTERS.names())
def test_every_adapter_is_planned_or_refused_in_a_sentence(tiny, adapter):
    """NOLA reads its seed in the forward pass, where there is no number to read."""
    smoke = Path(f"recipes/smoke/{adapter}.yaml")
    try:
        recipe = load_recipe(smoke, [f"model.name={tiny()}", "train.max_length=64"]).recipe
        found, _ = forecast(recipe, {"kind": "cuda", "bytes": GIB, "source": ""})
    except RecipeError:
        return
    assert found.train["total"] > found.train["adapter"] > 0
