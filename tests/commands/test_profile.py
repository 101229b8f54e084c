"""`lrft train --profile`: where the time of a step went, and that looking changes nothing."""

from __future__ import annotations

import json
import shutil

import pytest

from lrft.training.profile_parts import (
    ATTENTION,
    BASE,
    COPIES,
    DECODE,
    DECODING,
    HEAD,
    LOW_RANK,
    OPTIMIZER,
    OTHER,
    PARTS,
    POINTWISE,
    STEP,
    Operation,
    Sizes,
    part_of,
    seconds_by_part,
    table,
)

LENGTH = ["train.max_steps=6", "train.save_every=6"]
SIZES = Sizes(frozenset({(64, 64), (128, 64)}), (520, 64), frozenset({4}), frozenset({96}))


def trained(folder) -> dict[str, object]:
    """What a run trained: the adapter, the last checkpoint, its losses."""
    last = folder / "checkpoints" / "step-6"
    kept = [*(folder / "adapter").glob("*.safetensors"), *last.glob("*.safetensors")]
    assert len(kept) == 3
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    state = json.loads((last / "state.json").read_text())
    assert state["callbacks"].pop("Profile", {}) == {}
    losses = [(line["loss"], line["grad_norm"]) for line in lines]
    return {path.name: path.read_bytes() for path in kept} | {"losses": losses, "state": state}


def test_a_profiled_run_writes_a_trace_and_a_table_and_trains_the_same_bytes(call, recipe, tmp_path):
    plain = call("train", recipe, *LENGTH, "--out", tmp_path / "plain")
    assert plain.code == 0, plain.err
    looked = call("train", recipe, *LENGTH, "--out", tmp_path / "looked", "--profile")
    assert looked.code == 0, looked.err
    assert trained(tmp_path / "looked") == trained(tmp_path / "plain")
    assert not (tmp_path / "plain" / "profile").exists()
    text = (tmp_path / "looked" / "profile" / "step.txt").read_text()
    assert looked.out.endswith(text) and text.startswith("steps 4 to 6 on cpu, while being recorded: ")
    events = json.loads((tmp_path / "looked" / "profile" / "trace.json").read_text())["traceEvents"]
    assert sum(event.get("name") == STEP and event.get("cat") == "user_annotation" for event in events) == 3
    result = json.loads((tmp_path / "looked" / "result.json").read_text())
    assert "profile" not in result


def test_every_part_of_a_step_is_found_and_they_add_up(call, recipe, tmp_path):
    done = call("train", recipe, *LENGTH, "--out", tmp_path / "run", "--profile", "--json")
    assert done.code == 0, done.err
    found = done.document["profile"]
    assert found["steps"] == [4, 5, 6] and list(found["seconds"]) == list(PARTS)
    assert all(seconds > 0 for seconds in found["seconds"].values()), found["seconds"]
    text = (tmp_path / "run" / "profile" / "step.txt").read_text()
    assert text == table(found["seconds"], found["steps"], found["device"])


def test_a_run_that_is_too_short_is_refused_before_anything_is_written(call, recipe, tmp_path):
    refused = call("train", recipe, "train.max_steps=5", "--out", tmp_path / "run", "--profile")
    assert refused.code == 2
    assert "--profile: records steps 4 to 6, and 5 are left to train" in refused.err
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_a_run_that_ends_early_says_that_nothing_was_written(call, recipe, tmp_path):
    done = call(
        "train", recipe, *LENGTH, "train.stop_below=100", "--out", tmp_path / "run", "--profile", "--json"
    )
    assert done.code == 0, done.err
    assert "--profile: the run ended after 1 of 6 steps, so nothing was written" in done.err
    assert "profile" not in done.document and not (tmp_path / "run" / "profile").exists()


def test_a_run_goes_on_with_a_profile_and_is_asked_for_the_steps_that_are_left(call, recipe, tmp_path):
    run, length = tmp_path / "run", ["train.max_steps=8", "train.save_every=1", "train.keep_last=9"]
    assert call("train", recipe, *length, "--out", run).code == 0
    whole = (run / "checkpoints" / "step-8" / "adapter.safetensors").read_bytes()
    (run / "result.json").unlink()
    for step in range(4, 9):
        shutil.rmtree(run / "checkpoints" / f"step-{step}")
    refused = call("train", recipe, *length, "--out", run, "--resume", "--profile")
    assert refused.code == 2 and "5 are left to train" in refused.err
    shutil.rmtree(run / "checkpoints" / "step-3")
    resumed = call("train", recipe, *length, "--out", run, "--resume", "--profile", "--json")
    assert resumed.code == 0, resumed.err
    assert resumed.document["profile"]["steps"] == [6, 7, 8]
    assert (run / "checkpoints" / "step-8" / "adapter.safetensors").read_bytes() == whole


@pytest.mark.parametrize(
    ("name", "callers", "shapes", "part"),
    [
        ("aten::mm", (), [(96, 64), (64, 128)], BASE),
        ("aten::mm", (), [(96, 128), (128, 64), (96, 64)], BASE),
        ("aten::mm", (), [(64, 96), (96, 128)], BASE),  # of a weight that trains, its gradient
        ("aten::addmm_", (), [(96, 64), (96, 4), (4, 64)], LOW_RANK),
        ("aten::mm", (), [(4, 96), (96, 64)], LOW_RANK),
        ("aten::mm", (), [(4, 64), (64, 64)], LOW_RANK),  # factors through the weight, no token in it
        ("aten::mm", (), [(96, 64), (64, 520)], HEAD),
        ("aten::mm", ("ChunkedCrossEntropy",), [(96, 64), (64, 64)], HEAD),
        ("aten::bmm", (), [(8, 48, 16), (8, 16, 48)], ATTENTION),
        ("aten::bmm", (), [(8, 48, 4), (8, 4, 16)], LOW_RANK),
        ("aten::mul", ("_SegmentedBackward",), [], ATTENTION),
        ("aten::_softmax", (), [(8, 48, 48)], ATTENTION),
        ("aten::silu", (), [(96, 128)], POINTWISE),
        ("aten::copy_", (), [], COPIES),
        ("aten::mul", (DECODE, "_BranchMatmul"), [], DECODING),
        ("bitsandbytes::dequantize_4bit", (), [], DECODING),
        ("aten::copy_", ("Optimizer.step#AdamW.step",), [], OPTIMIZER),
        ("Optimizer.step#AdamW.step", (), [], OPTIMIZER),
        ("aten::_foreach_norm", (), [], OPTIMIZER),
        ("aten::view", ("_Segmented",), [], OTHER),
        ("_BranchMatmulBackward", (), [], OTHER),
        ("cpp_fused_mul_silu_0", (), [], POINTWISE),
    ],
)
def test_an_operation_belongs_to_one_part(name, callers, shapes, part):
    assert part_of(Operation(name, callers, tuple(shapes), 1.0), SIZES) == part


def test_as_many_tokens_as_ranks_are_still_tokens():
    sizes = Sizes(SIZES.maps, SIZES.head, frozenset({96}), frozenset({96}))
    assert part_of(Operation("aten::mm", (), ((96, 64), (64, 128)), 1.0), sizes) == BASE


def test_what_no_operation_took_is_python():
    one = Operation("aten::silu", (), (), 0.25)
    found = seconds_by_part([one, one], 2.0, SIZES)
    assert found[POINTWISE] == 0.5 and found[OTHER] == 1.5 and sum(found.values()) == 2.0
    assert "75.0%" in table(found, [4, 5, 6], "cpu")
