"""`lrft posterior` and `lrft eval --posterior` on a tiny run, as a user calls them."""

import json

import pytest

RECIPE = """
model: {{name: {model}, dtype: float32}}
quantization: none
adapter: {{method: {method}, rank: 4}}
optimizer: {{method: adamw, lr: 0.01}}
data:
  train: {{source: train.jsonl}}
  eval: {{source: eval.jsonl}}
  format: {{method: instruction}}
train: {{max_steps: 2, batch_size: 2, save_every: 1, max_length: 256, device: cpu}}
"""


def rows(start: int, count: int) -> str:
    made = []
    for k in range(start, start + count):
        options = f"Answer1: {k} Answer2: {k + 1} Answer3: {k + 2}"
        answer = f"answer{k % 3 + 1}"
        instruction = f"Which is {k + k % 3}?\n\n{options}\n\nAnswer format: answer1/answer2/answer3"
        row = {
            "instruction": instruction,
            "input": "",
            "output": f"the correct answer is {answer}",
            "answer": answer,
        }
        made.append(json.dumps(row) + "\n")
    return "".join(made)


@pytest.fixture
def trained(call, tiny, tmp_path):
    def train(method="lora", *overrides):
        (tmp_path / "train.jsonl").write_text(rows(0, 6))
        (tmp_path / "eval.jsonl").write_text(rows(40, 4))
        (tmp_path / "mc.yaml").write_text(RECIPE.format(model=tiny(), method=method))
        out = () if "--out" in overrides else ("--out", "run")
        ended = call("train", "mc.yaml", *out, *overrides)
        assert ended.code == 0, ended.err
        return tmp_path / "run"

    return train


def test_a_run_gets_a_posterior_and_is_scored_with_it(call, trained):
    run = trained()
    assert "run has none; write lrft posterior run" in call("eval", "run", "--posterior").err
    measured = call(
        "posterior", "run", "--temperature", "0.7,1", "--layers", "last", "--above", "32", "--json"
    )
    assert measured.code == 0, measured.err
    assert "step-2 had gone through 67% of its training rows" in measured.err
    found = measured.document
    assert found["rows"] == 6 and [one["temperature"] for one in found["tried"]] == [0.7, 1]
    record = json.loads((run / "posterior" / "posterior.json").read_text())
    assert record["prior_precision"] == found["prior_precision"] and record["checkpoint"] == "step-2"
    assert {name.rpartition(".")[2] for name in record["factors"]} == {"A", "B"}

    scored = call("eval", "run", "--posterior", "--json")
    assert scored.code == 0, scored.err
    before, after = (scored.document[label]["one_token_choice"] for label in ("adapter", "posterior"))
    assert before.keys() == after.keys() == {"acc", "acc_stderr", "ece", "nll", "brier"}
    assert before["nll"] != after["nll"]
    report = json.loads((run / "eval" / "posterior.json").read_text())
    assert report["tasks"]["posterior"]["metrics"]["nll"] == after["nll"]
    assert report["tasks"]["posterior"]["settings"]["prior_precision"] == found["prior_precision"]

    other = call("eval", "run", "--posterior", "--checkpoint", "step-1")
    assert other.code == 2 and "is of step-2, and step-1 is scored; write --checkpoint step-2" in other.err
    assert "leave out --task" in call("eval", "run", "--posterior", "--baseline").err
    file = run / "posterior" / "factors.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    damaged = call("eval", "run", "--posterior")
    assert damaged.code != 0 and "posterior" in damaged.err and "is damaged" in damaged.err
    assert "the posterior is what was written" in call("doctor", "run").out


def test_what_can_have_no_posterior_is_refused_in_one_sentence(call, trained):
    trained("dora")
    refused = call("posterior", "run")
    assert refused.code == 2 and refused.err.count("error:") == 1
    assert "run can have no posterior: dora at model.layers.0" in refused.err
    assert "--layers first: write all or last" in call("posterior", "run", "--layers", "first").err
    assert "write positive numbers" in call("posterior", "run", "--temperature", "0").err


def test_it_is_measured_on_rows_as_they_were_learnt_whatever_a_task_asks_with(call, trained):
    """The rows of `multiple_choice` may be written in a format of their own; those trained on were not."""
    trained()
    plain = call("posterior", "run", "--layers", "last", "--json").document
    asked = "eval.tasks=[{method: multiple_choice, format: {method: instruction, render: chat}}]"
    other = trained("lora", asked, "--out", "other").parent / "other"
    (other / "metrics.jsonl").unlink()  # nothing but what is told of rows goes by it
    found = call("posterior", "other", "--layers", "last", "--json").document
    assert found["tried"] == plain["tried"]
