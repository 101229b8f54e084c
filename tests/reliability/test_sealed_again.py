"""A folder that was changed and summed again: its manifest agrees with it, and what it says is still not believed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lrft.core.stages import SitePlan
from lrft.files.json import with_sum
from lrft.files.sums import MANIFEST, file_sum, folder_manifest, manifest_bytes, plain_sum
from lrft.registry.axes import ADAPTERS
from lrft.registry.errors import DamagedFile
from lrft.training.opened import OPTIMIZER, STATE
from tests.reliability.damaged_inputs import FIT, TRANSFER, Prepared
from tests.reliability.full_disk import Bench, _remove, call
from tests.reliability.outcome import ROOT
from tests.reliability.struck import files_in

DRAW = ("generate-adapter", "draw", "generator", "recipe.yaml", "--describe", "a", "--out", "out")
APPLY = ("delta", "apply", "difference", "base", "--out", "out")
COMPRESS = ("delta", "compress", "difference", "--ratio", "0.5", "--out", "out")
SCORE = ("eval", "choice", "--posterior")
TAKES = {DRAW: ("generator",), APPLY: ("difference", "base"), COMPRESS: ("difference",), SCORE: ("choice",)}
PLACE = {DRAW: "generator", APPLY: "difference", COMPRESS: "difference", SCORE: "choice/posterior"}
LARGE = {"method": "icm_lora", "latent": 2**16, "channels": [2**12, 2**12]}


def said(file: str, **values: object) -> Callable[[Path], None]:
    """Give keys of a record other values."""

    def edit(folder: Path) -> None:
        record = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**record, **values}))

    return edit


def renamed(folder: Path) -> None:
    """Say that all is of a layer that there is not."""
    record = json.loads((folder / "generator.json").read_text())
    shapes = {name.replace("layers.0", "layers.9"): shape for name, shape in record["shapes"].items()}
    (folder / "generator.json").write_text(json.dumps({**record, "shapes": shapes}))


def times(file: str, factor: float) -> Callable[[Path], None]:
    """Multiply every number of a file."""

    def edit(folder: Path) -> None:
        tensors = load_file(folder / file)
        save_file({name: one * factor for name, one in tensors.items()}, folder / file)
        record = folder / "delta.json"
        if record.exists():
            files = {file: plain_sum(file_sum(folder / file))}
            record.write_text(json.dumps({**json.loads(record.read_text()), "files": files}))

    return edit


CASES = {
    "generator of other layers": (DRAW, renamed, 2, "which no layer of the base takes"),
    "generator without bounds": (DRAW, said("generator.json", generator=LARGE), 2, "is not what generator.json"),
    "generator of no number": (DRAW, times("generator.safetensors", float("nan")), 2, "that no fit leaves"),
    "difference of no number": (APPLY, times("delta.safetensors", float("inf")), 2, "are not finite"),
    "difference to compress": (COMPRESS, times("delta.safetensors", float("nan")), 2, "are not finite"),
    "difference of words": (COMPRESS, said("delta.json", changed="many"), 2, "key 'changed' is wrong"),
    "difference that tells": (APPLY, said("delta.json", relative_change="all"), 2, "'relative_change' is wrong"),
    "posterior too cold": (SCORE, said("posterior.json", temperature=1e-320), 4, "gives these rows no probab"),
    "posterior below nothing": (SCORE, times("factors.safetensors", -1e30), 4, "gives these rows no probab"),
    "posterior of no number": (SCORE, times("factors.safetensors", float("nan")), 2, "holds no curvature"),
}  # fmt: skip


@pytest.fixture(scope="module")
def prepared(bench: Bench) -> Prepared:
    return Prepared(bench)


@pytest.mark.parametrize("case", CASES)
def test_what_a_sealed_folder_says_is_compared_with_what_it_is_used_on(prepared, case):
    words, edit, code, why = CASES[case]
    place = prepared.place(TAKES[words], prepared.bench.folder)
    folder = place / PLACE[words]
    edit(folder)
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).write_bytes(folder_manifest(folder))
    ended = call(place, words)
    (error,) = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert (ended.code, ended.raised) == (code, "") and why in error, ended
    assert not (place / "out").exists()
    shutil.rmtree(place)


def test_a_posterior_is_measured_on_the_rows_of_the_training_alone(prepared):
    place = prepared.place(("choice",), prepared.bench.folder)
    file = prepared.folder / "choices-train.jsonl"  # which the recipe of the run names
    before = file.read_text()
    assert call(place, ("posterior", "choice")).code == 0
    held = (place / "choice" / "posterior" / "posterior.json").read_bytes()
    try:
        file.write_text(before.replace("the answer is b", "the answer is a"))
        ended = call(place, ("posterior", "choice"))
    finally:
        file.write_text(before)
    assert ended.code == 3 and "data.train: its rows changed since choice was trained" in ended.err, ended
    assert (place / "choice" / "posterior" / "posterior.json").read_bytes() == held
    shutil.rmtree(place)


def test_settings_of_a_plan_that_are_none_are_told_by_site_and_key():
    site = {"name": "layer", "in_features": 2, "out_features": 2, "has_bias": False}
    with pytest.raises(
        DamagedFile, match=r"plan\.json: layer has settings that are none \(rank: .* greater than 0\)"
    ):
        SitePlan.of({**site, "settings": {"method": "lora", "rank": -3}}, ADAPTERS.get("lora").Config)


FULL = ("trainable=full", "adapter=null", "eval.tasks=[]")
TRAINED = {
    "adamw": ("optimizer={method: adamw, lr: 0.01}",),
    "adamw in 8 bits": ("optimizer={method: adamw8bit, lr: 0.01}",),
    "adam_mini": ("optimizer={method: adam_mini, lr: 0.01}",),
    "lora_pro": ("optimizer={method: lora_pro, lr: 0.01}",),
    "muon": ("optimizer={method: muon, lr: 0.01}",),
    "schedule_free": ("optimizer={method: schedule_free, lr: 0.01}",),
    "sgd": ("optimizer={method: sgd, lr: 0.01, momentum: 0.9}",),
    "galore": ("optimizer={method: galore, lr: 0.01, rank: 4, update_every: 2}", *FULL),
    "frugal": ("optimizer={method: frugal, lr: 0.01, update_every: 2}", *FULL),
    "copies": (
        "model.dtype=bfloat16",
        "optimizer={method: adamw, lr: 0.01}",
        *FULL,
        "trainable.update=master",
    ),
    "layer by layer": ("optimizer={method: adamw, lr: 0.01, per_layer: true}", "train.clip=null"),
    "in pages": ("offload={optimizer: disk}",),
}
CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "one number": lambda one: one.flatten()[:1].clone(),
    "another rank": lambda one: torch.cat([one, one]) if one.ndim else one.repeat(2),
    "other numbers": lambda one: one.to(torch.int64) if one.is_floating_point() else one.float(),
}


def _after_one_step(
    prepared: Prepared, name: str, command: str = "train", given: Sequence[str] = ()
) -> tuple[Path, Path]:
    """A place with a run that was cut off after its first step, and that step's checkpoint."""
    place = prepared.place((), prepared.bench.folder)
    run = prepared.bench.folder / f"optimizer of {name}"
    if not run.exists():
        ended = call(place, (command, "recipe.yaml", "--out", str(run), *(given or TRAINED[name])))
        assert ended.code == 0, ended
    shutil.copytree(run, place / "run", symlinks=True)
    step, *later = sorted((place / "run" / "checkpoints").iterdir())
    for path in (*later, *(place / "run" / name for name in ("adapter", "last", "best", "result.json"))):
        _remove(path)
    return place, step


def _seal(step: Path, file: str) -> None:
    """Let the manifest of a checkpoint agree with a file that was changed."""
    record = json.loads((step / MANIFEST).read_text())
    record["files"][file] = plain_sum(file_sum(step / file))
    (step / MANIFEST).write_bytes(manifest_bytes({k: v for k, v in record.items() if k != "sha256"}))


def _change(step: Path, change: str, chosen: Callable[[dict[str, Tensor]], str]) -> None:
    """Another tensor in the place of one that a checkpoint keeps, and a manifest that agrees."""
    tensors = load_file(step / OPTIMIZER)
    key = chosen(tensors)
    tensors[key] = CHANGES[change](tensors[key])
    save_file(tensors, step / OPTIMIZER)
    _seal(step, OPTIMIZER)


def _largest(tensors: dict[str, Tensor]) -> str:
    return max(tensors, key=lambda key: (tensors[key].ndim, key))


def _refused(place: Path, command: str = "train") -> str:
    """The one sentence that going on with a run ends in."""
    ended = call(place, (command, "run", "--resume"))
    (error,) = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert (ended.code, ended.raised) == (2, ""), ended
    shutil.rmtree(place)
    return error


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", TRAINED)
def test_optimizer_state_of_another_shape_or_dtype_is_refused_before_a_step(prepared, name, change):
    place, step = _after_one_step(prepared, name)
    _change(step, change, _largest)
    error = _refused(place)
    assert "does not fit this run (ValueError: of the optimizer's state" in error and "is meant" in error, (
        error
    )


ALLOCATED = (
    "adapter={method: svd_lora, rank: 4, alpha: 8}",
    "allocate={method: adalora, target_rank: 2, every: 1}",
    "train.max_steps=3",
    "train.keep_last=3",
)


@pytest.mark.parametrize("change", CHANGES)
def test_an_importance_of_another_shape_or_dtype_is_refused_before_a_step(prepared, change):
    place, step = _after_one_step(prepared, "adalora", given=ALLOCATED)
    _change(step, change, lambda held: next(key for key in held if "importance" in key and held[key].ndim))
    error = _refused(place)
    assert "the checkpoint's importance of" in error, error


ROWS = ROOT / "recipes" / "data" / "quickstart" / "train.jsonl"
KEPT_LATER = {
    "ggpo": ("rows", ("adapter={method: ggpo, rank: 4}",)),
    "mgpo": ("norms", ("adapter={method: mgpo, rank: 4}",)),
    "lift": ("LIFT", (*FULL, "select={method: lift, every: 2, budget_rank: 2, filter_rank: 2}")),
    "dora_rank": (
        "scores",
        ("adapter={method: gated_lora, rank: 4}", "allocate={method: dora_rank, target_rank: 2, every: 1}"),
    ),
    "airllm": (
        "actor",
        (
            "adapter={method: svd_lora, rank: 4}",
            "allocate={method: airllm, bandwidth: [20000000], episode: 2, warmup: 2, denoising: 3}",
        ),
    ),
    "abmll": (
        "exp_avg",
        (
            "adapter={method: abmll, rank: 4}",
            "objective=abmll",
            "train.gradient_accumulation=2",
            f"data.train=[{{source: {ROWS}, limit: 4}}, {{source: {ROWS}, limit: 4}}]",
            "data.mix={order: alternating}",
        ),
    ),
    "loraprune": (
        "scores",
        (
            "adapter.targets=all-linear",
            "prune={method: loraprune, every: 1, whole_first: 0.0, whole_last: 0}",
        ),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", KEPT_LATER)
def test_what_a_method_keeps_from_its_first_step_on_is_compared_before_the_next(prepared, name, change):
    part, given = KEPT_LATER[name]
    place, step = _after_one_step(prepared, name, given=(*given, "train.max_steps=3", "train.keep_last=3"))
    _change(step, change, lambda held: next(key for key in held if "callbacks" in key and part in key))
    error = _refused(place)
    assert "of what goes with the run" in error and "is meant" in error, error


@pytest.mark.parametrize(("key", "value"), [("best_step", "all"), ("owed", None)])
def test_what_goes_with_a_run_of_another_kind_is_refused_before_a_step(prepared, key, value):
    place, step = _after_one_step(prepared, "scores", given=("train.eval_every=1", "eval.tasks=[loss]"))
    state = json.loads((step / STATE).read_text())
    assert key in state["callbacks"]["Scorer"], state["callbacks"]
    state["callbacks"]["Scorer"][key] = value
    (step / STATE).write_text(json.dumps(state))
    _seal(step, STATE)
    error = _refused(place)
    assert "of what goes with the run, Scorer." in error, error


def _without_a_number(states: dict) -> bool:
    """Take the first tensor away that is not a parameter's only one."""
    for inner in states.values():
        if not isinstance(inner, dict) or set(inner) == {"__tensor__"}:
            continue
        kept = [name for name, one in inner.items() if isinstance(one, dict) and set(one) == {"__tensor__"}]
        if len(kept) > 1 or (kept and len(inner) > 1):
            del inner[kept[0]]
            return True
        if _without_a_number(inner):
            return True
    return False


@pytest.mark.parametrize("name", ["adamw", "adamw in 8 bits", "lora_pro", "galore", "copies"])
def test_optimizer_state_that_lacks_a_number_is_refused_before_a_step(prepared, name):
    place, step = _after_one_step(prepared, name)
    state = json.loads((step / STATE).read_text())
    lacks = _without_a_number(state["optimizer"])
    (step / STATE).write_text(json.dumps(state))
    _seal(step, STATE)
    error = _refused(place)
    assert lacks and "of the optimizer's state" in error and error.count("is missing") == 1, error


FEDERATED = "federate={{clients: 2, rounds: 2, local_steps: 1, partition: even, aggregate: {}}}"


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("aggregate", ["fed_stale", "ferret"])
def test_what_a_server_keeps_of_another_shape_or_dtype_is_refused_before_a_round(prepared, aggregate, change):
    given = (FEDERATED.format(aggregate), "train.max_steps=null", "eval.tasks=[]")
    place, step = _after_one_step(prepared, f"the server of {aggregate}", "federate", given)
    _change(step, change, _largest)
    error = _refused(place, "federate")
    assert "does not fit this run (ValueError: " in error, error


def _other_key(state: dict) -> None:
    del state["state"]["__integer_keys__"]["0"]["exp_avg"]


OPTIMIZERS_OF_FITS: dict[str, Callable[[dict], object]] = {
    "a tensor that is not there": lambda s: s["state"]["__integer_keys__"]["0"]["exp_avg"].update(
        __tensor__="x"
    ),
    "a key less": _other_key,
    "another parameter": lambda s: s["param_groups"][0]["params"].__setitem__(0, 5),
    "a parameter less": lambda s: s["param_groups"][0]["params"].pop(),
    "a rate that is a text": lambda s: s["param_groups"][0].update(eps="much"),
    "no state": lambda s: s.update(state=[]),
}


@pytest.mark.parametrize("name", OPTIMIZERS_OF_FITS)
def test_the_optimizer_of_a_fit_that_says_something_else_is_refused(prepared, name):
    place = prepared.place(("run", "fitting"), prepared.bench.folder)
    folder = place / "fitting"
    state = json.loads((folder / "optimizer.json").read_text())
    OPTIMIZERS_OF_FITS[name](state)
    (folder / "optimizer.json").write_text(json.dumps(state))
    (folder / MANIFEST).write_bytes(folder_manifest(folder))
    before = files_in(place)
    ended = call(place, FIT)
    (error,) = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert (ended.code, ended.raised) == (2, "") and "is no state of the generator's optimizer" in error, (
        ended
    )
    assert files_in(place) == before
    shutil.rmtree(place)


def test_settings_of_the_optimizer_of_a_fit_are_its_methods(prepared):
    place = prepared.place(("run", "fitting"), prepared.bench.folder)
    other = prepared.place(("run", "fitting"), prepared.bench.folder)
    state = json.loads((place / "fitting" / "optimizer.json").read_text())
    state["param_groups"][0].update(maximize=True, weight_decay=0.9)
    (place / "fitting" / "optimizer.json").write_text(json.dumps(state))
    (place / "fitting" / MANIFEST).write_bytes(folder_manifest(place / "fitting"))
    assert call(place, FIT).code == call(other, FIT).code == 0
    assert files_in(place / "fitting") == files_in(other / "fitting")
    shutil.rmtree(place)
    shutil.rmtree(other)


@pytest.mark.parametrize("change", [{"label": [[]]}, {"label": None}, {"text": 3}])
def test_texts_of_a_discriminator_that_are_none_are_refused(prepared, change):
    place = prepared.place(("run", "begun"), prepared.bench.folder, True)
    texts, done = place / "begun" / "discriminator.jsonl", place / "begun" / "done.json"
    first, *others = texts.read_text().splitlines(keepends=True)
    texts.write_text(json.dumps({**json.loads(first), **change}) + "\n" + "".join(others))
    files = {**json.loads(done.read_text())["files"], texts.name: file_sum(texts)["sha256"]}
    done.write_text(json.dumps(with_sum({"files": files})))
    ended = call(place, tuple("begun" if word == "carried" else word for word in TRANSFER))
    (error,) = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert (ended.code, ended.raised) == (2, "") and "discriminator.jsonl:1: its key" in error, ended
    shutil.rmtree(place)
