"""`lrft generate` on a run of the tiny model: the same file however it is batched or cut."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from lrft.api.opening.open_run import open_run
from lrft.api.training.train import train
from lrft.build.scoring import subject
from lrft.core.adapted import adapters_off
from lrft.evaluation.generate import generate
from lrft.recipe.load import load_recipe
from lrft.training.folder import find
from tests.commands.conftest import DATA, RECIPE

ASKED = ["2 + 2 =", "Name a colour.", "Why?", "List three fruits, please, one a line."] * 5


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """Four steps, at a rate at which adapter and base answer differently."""
    folder = tmp_path_factory.mktemp("generate")
    path = folder / "tiny.yaml"
    path.write_text(RECIPE.format(model=tiny(), data=DATA))
    train(load_recipe(path, ["optimizer.lr=0.3", "eval.batch_tokens=120"]), folder / "run", resume=False)
    return folder / "run"


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("".join(f"{text}\n" for text in ASKED))
    return path


def answers(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_file_of_prompts_is_answered_in_order_as_one_by_one(call, run, prompts, tmp_path):
    done = call("generate", run, prompts, "--out", "a.jsonl", "--max-new-tokens", "6", "--json")
    assert done.code == 0, done.err
    found = answers(tmp_path / "a.jsonl")
    recipe, text, adaptation = open_run(find(run))
    target = subject(recipe, text, adaptation.model)
    ids = [text.renderer.prompt_ids({"prompt": asked, "completion": "x"}) for asked in ASKED]
    assert [one["row"] for one in found] == list(range(len(ASKED)))
    assert [one["prompt"] for one in found] == [text.tokenizer.decode(one) for one in ids]
    alone = [generate(target, [one], 6)[0] for one in ids[:4]]
    assert [one["output"] for one in found] == [target.decode(tokens) for tokens in alone] * 5
    unstopped = sum(not one["stopped"] for one in found)
    assert done.document == {"out": "a.jsonl", "rows": 20, "before": 0, "unstopped": unstopped}

    base = call("generate", run, prompts, "--out", "b.jsonl", "--max-new-tokens", "6", "--base")
    assert base.code == 0, base.err
    with adapters_off(adaptation.model):
        alone = [generate(target, [one], 6)[0] for one in ids[:4]]
    others = [one["output"] for one in answers(tmp_path / "b.jsonl")]
    assert others == [target.decode(tokens) for tokens in alone] * 5
    assert others != [one["output"] for one in found]


def test_draws_go_on_where_a_cut_file_ends(call, run, prompts, tmp_path):
    drawn = ["--max-new-tokens", "5", "--temperature", "1", "--seed", "3"]
    assert call("generate", run, prompts, "--out", "whole.jsonl", *drawn).code == 0
    whole = (tmp_path / "whole.jsonl").read_bytes()
    outputs = [one["output"] for one in answers(tmp_path / "whole.jsonl")]
    assert len(set(outputs[::4])) > 1, "equal prompts, other draws"
    for cut in (0, whole.index(b"\n") + 30, len(whole) - 1, len(whole)):
        shutil.copy(tmp_path / "whole.jsonl.about.json", tmp_path / "cut.jsonl.about.json")
        (tmp_path / "cut.jsonl").write_bytes(whole[:cut])
        done = call("generate", run, prompts, "--out", "cut.jsonl", *drawn, "--json")
        assert done.document["before"] == whole[:cut].count(b"\n")
        assert (tmp_path / "cut.jsonl").read_bytes() == whole
    other = call("generate", run, prompts, "--out", "whole.jsonl", *drawn[:-1], "4")
    assert other.code == 2 and "its lines were generated with sampling" in other.err
    assert (tmp_path / "whole.jsonl").read_bytes() == whole


@pytest.mark.slow
def test_a_killed_process_loses_and_doubles_no_row(call, run, prompts, tmp_path):
    prompts.write_text("".join(f"{k}: {text}\n" for k in range(10) for text in ASKED))
    arguments = ["generate", run, prompts, "--max-new-tokens", "12"]
    assert call(*arguments, "--out", "whole.jsonl").code == 0
    command = [sys.executable, "-m", "lrft", *map(str, arguments), "--out", "cut.jsonl"]
    path, kills = tmp_path / "cut.jsonl", 0
    for _ in range(20):
        running = subprocess.Popen(command, cwd=tmp_path, env=dict(os.environ), stderr=subprocess.DEVNULL)
        before = path.stat().st_size if path.exists() else 0
        while running.poll() is None and (not path.exists() or path.stat().st_size == before):
            time.sleep(0.01)
        if running.poll() is None and kills < 3:
            running.send_signal(signal.SIGKILL)
            kills += 1
        running.wait()
        if running.returncode == 0:
            break
    assert kills == 3
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["RUN", "nowhere.txt", "--out", "a.jsonl"], 3, "nowhere.txt: no such file of prompts"),
        (["RUN", "PROMPTS", "--out", "a.txt"], 2, "--out a.txt: answers are JSON"),
        (["RUN", "PROMPTS", "--out", "a.jsonl", "--top-p", "0.5"], 2, "nothing is drawn at temperature 0"),
        (["RUN", "PROMPTS", "--out", "a.jsonl", "--max-new-tokens", "0"], 2, "at least one token"),
        (["RUN", "PROMPTS", "x", "--out", "a.jsonl"], 2, "x: give one run and one file"),
        (["PROMPTS", "--out", "a.jsonl"], 2, "no run with a checkpoint"),
    ],
)
def test_what_cannot_be_generated_is_one_sentence(call, run, prompts, tmp_path, arguments, code, message):
    names = {"RUN": run, "PROMPTS": prompts}
    done = call("generate", *(names.get(one, one) for one in arguments))
    assert done.code == code, done.err
    assert message in done.err and "Traceback" not in done.err
    assert not (tmp_path / "a.jsonl").exists()
