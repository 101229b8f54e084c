"""No folder, repository or model of a stranger's runs code of its own, and no secret is written down."""

import io
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from lrft.registry.secrets import masked
from lrft.training.commit import commit_of
from tests.commands.test_cli import OPTIONS, TRUST
from tests.older_run import as_older
from tests.reliability.called import DATA, RECIPE, cases, lrft
from tests.reliability.full_disk import call

CODE = """
import pathlib
with pathlib.Path({canary!r}).open("a") as file: file.write("ran")
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class Config(LlamaConfig):
    model_type = "stranger"
class Model(LlamaForCausalLM):
    config_class = Config
class Tokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A finished run, and beside it what the model that it makes has beyond its base, and a generator of adapters."""
    from lrft.api.delta.diff import diff
    from lrft.api.generating.fit import fit
    from lrft.api.merging.merge import merge
    from lrft.api.training.train import train

    folder = tmp_path_factory.mktemp("code")
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(model=tiny(), data=DATA))
    train(recipe, folder / "run")
    merge(folder / "run", folder / "tuned")
    diff(tiny(), folder / "tuned", folder / "change")
    fit([str(folder / "run")], folder / "generator", "softmax_merge", {"run": "a"})
    return folder / "run"


@pytest.fixture(params=["stranger"])
def foreign(run, tiny, tmp_path, request):
    """A stranger's run, which says that it trusted code, and whose base brings some; and what the code would write."""
    base, canary = tmp_path / "base", tmp_path / "canary"
    shutil.copytree(tiny(), base)
    config = json.loads((base / "config.json").read_text())
    if request.param == "stranger":
        config |= {"model_type": "stranger", "architectures": ["Model"]}
    config["auto_map"] = {"AutoConfig": "stranger.Config", "AutoModelForCausalLM": "stranger.Model"}
    (base / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((base / "tokenizer_config.json").read_text())
    tokenizer["auto_map"] = {"AutoTokenizer": [None, "stranger.Tokenizer"]}
    (base / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (base / "stranger.py").write_text(CODE.format(canary=str(canary)))
    (base / "custom_generate").mkdir()
    (base / "custom_generate" / "generate.py").write_text(CODE.format(canary=str(canary)))
    folder = tmp_path / "run"
    as_older(Path(shutil.copytree(run, folder)))  # a stranger can write sums, too
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["model"]["name"] = str(base)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    record = json.loads((folder / "run.json").read_text()) | {"trust_remote_code": True}
    (folder / "run.json").write_text(json.dumps(record))
    (tmp_path / "prompts.txt").write_text("hello\n")
    (tmp_path / "ask.txt").write_text("Say otherwise: {prompt}\n")
    (tmp_path / "space.yaml").write_text("adapter.rank: [1, 2]\n")
    (tmp_path / "other.yaml").write_text(f"extends: {folder}/recipe.yaml\nadapter: {{rank: 1}}\n")
    for name, table in TABLES.items():
        (tmp_path / name).write_text(json.dumps(table).replace("RUN", str(folder)))
    write_peft(tmp_path / "peft", base)
    return folder, canary


def write_peft(folder, base):
    """An adapter of PEFT's on one layer of a base."""
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": str(base)}))
    width = json.loads((base / "config.json").read_text())["hidden_size"]
    of = "base_model.model.model.layers.0.self_attn.q_proj"
    factors = {f"{of}.lora_A.weight": torch.ones(1, width), f"{of}.lora_B.weight": torch.ones(width, 1)}
    save_file(factors, folder / "adapter_model.safetensors")


CELLS = {"trainable": 1}
COLUMNS = {"trainable": {"metric": "trainable", "provenance": "T"}}
SCORED = {"loss": {"metric": "loss.loss", "tolerance": 1, "provenance": "T"}}
TABLE = {"title": "One", "paper": "Nobody, 2026.", "recipe": "RUN/recipe.yaml"}
TABLES = {
    "exact.yaml": {
        **{**TABLE, "tier": "exact", "columns": COLUMNS, "rows": [{"label": "a", "cells": CELLS}]},
    },
    "scaled.yaml": {
        **{**TABLE, "tier": "scaled", "claim": "None.", "provenance": "T", "bed": "none", "scale": "None."},
        **{
            "arms": [{"label": "a"}, {"label": "b", "overrides": ["adapter.rank=1"]}],
            "lr_grid": [0.01],
            "seeds": 1,
            "match": "steps",
        },
        "criteria": [{"arm": "a", "against": "b", "all_seeds": True}],
    },
    "full.yaml": {
        **{"title": "One", "paper": "Nobody, 2026.", "tier": "full", "cost": "none", "settings": ["none"]},
        "columns": SCORED,
        "rows": [{"label": "a", "recipe": "RUN/recipe.yaml", "cells": {"loss": 1}}],
    },
}
MERGE = ("--method", "softmax_merge")
OPENERS = {
    "eval": ["eval", "RUN"],
    "posterior": ["posterior", "RUN"],
    "federate": [
        *("federate", "RUN/recipe.yaml", "train.max_steps=null", "--out", "new"),
        "federate={clients: 2, rounds: 1, local_steps: 1, partition: even}",
    ],
    "combine": ["combine", "RUN", "RUN", "--method", "svd", "--out", "out"],
    "generate-adapter fit": ["generate-adapter", "fit", "RUN", *MERGE, "--describe", "run=a", "--out", "out"],
    "generate-adapter draw": ["generate-adapter", "draw", "MADE", "RUN", "--describe", "a", "--out", "out"],
    "transfer": [
        *("transfer", "RUN", "--to", "RUN/recipe.yaml", "--out", "out", "--shots", "2"),
        *("--contrast", "2", "--candidates", "2", "--max-new-tokens", "2"),
    ],
    "delta diff": ["delta", "diff", "BASE", "BASE", "--out", "out"],
    "delta apply": ["delta", "apply", "CHANGE", "BASE", "--out", "out"],
    "delta compress": ["delta", "compress", "CHANGE", "--recipe", "RUN/recipe.yaml", "--out", "out"],
    "merge": ["merge", "RUN", "--out", "out"],
    "export": ["export", "RUN", "--for", "peft", "--out", "out"],
    "generate": ["generate", "RUN", "prompts.txt", "--out", "out.jsonl"],
    "chat": ["chat", "RUN"],
    "serve": ["serve", "RUN", "RUN", "--port", "0"],  # of one name, so that it ends when both are open
    "inspect": ["inspect", "RUN"],
    "doctor": ["doctor", "RUN"],
    "resume": ["train", "RUN", "--resume", "--more-steps", "1"],
    "data show": ["data", "show", "RUN/recipe.yaml"],
    "data check": ["data", "check", "RUN/recipe.yaml"],
    "data select": [
        *(
            "data",
            "select",
            "RUN/recipe.yaml",
            "--method",
            "perplexity",
            "--budget",
            "1",
            "--out",
            "few.jsonl",
        ),
    ],
    "data rank": [
        *("data", "rank", "RUN/recipe.yaml", "--source", "RUN/recipe.yaml", "--method", "textemb"),
        *("--out", "order.json"),
    ],
    "choose": ["choose", "RUN/recipe.yaml", "--out", "out"],
    "data augment": ["data", "augment", "RUN/recipe.yaml", "--prompt", "ask.txt", "--out", "more.jsonl"],
    "train": ["train", "RUN/recipe.yaml", "--out", "new"],
    "dry run": ["train", "RUN/recipe.yaml", "--dry-run"],
    "plan": ["plan", "RUN/recipe.yaml"],
    "find-lr": ["find-lr", "RUN/recipe.yaml"],
    "sweep": ["sweep", "RUN/recipe.yaml", "adapter.rank=1,2", "--out", "out"],
    "search": ["search", "RUN/recipe.yaml", "--space", "space.yaml", "--budget", "2", "--out", "out"],
    "compare": ["compare", "RUN/recipe.yaml", "other.yaml", "--lr-grid", "1e-2", "--out", "out"],
    "merge --add": ["merge", "OWN", "--add", "RUN", "--out", "out"],
    "inspect --base": ["inspect", "peft", "--base", "BASE"],
    **{f"reproduce {file}": ["reproduce", file, "--out", "out"] for file in TABLES},
}
# Whoever asks: the first knows families layer by layer, the second compares the files of the base before they are
# opened, the third takes a change and leaves the base of that run alone.
RUN_NO_CODE = ("plan", "inspect", "merge --add")
# What opens no model; a report of a run reads what it left.
LOADS_NOTHING = {
    *(f"recipes {word}" for word in ("ls", "show", "cp", "validate", "schema", "diff")),
    *("methods ls", "methods show", "report", "env"),
}


def words_of(command, folder, run):
    """What is typed, on a stranger's run and on one's own."""
    places = {"RUN": folder, "BASE": folder.parent / "base", "OWN": run, "CHANGE": run.parent / "change"}
    places["MADE"] = run.parent / "generator"
    for word in OPENERS[command]:
        for name, path in places.items():
            word = word.replace(name, str(path)) if word.startswith(name) else word
        yield word


def test_every_command_that_opens_a_model_takes_the_option_and_is_tried():
    taking = {name for name, options in OPTIONS.items() if options >= TRUST}
    assert set(OPTIONS) - taking == LOADS_NOTHING
    tried = {" ".join(words) for words in OPENERS.values()}
    assert not [name for name in taking if not any(words.startswith(f"{name} ") for words in tried)]


@pytest.mark.parametrize("command", cases(OPENERS, ("eval", "merge", "doctor", "resume", "plan", "sweep")))
def test_a_folder_that_says_it_is_trusted_runs_no_code(foreign, run, monkeypatch, capfd, tmp_path, command):
    folder, canary = foreign
    monkeypatch.chdir(tmp_path)
    code, said = lrft(monkeypatch, capfd, *words_of(command, folder, run))
    assert not canary.exists()
    assert "Traceback" not in said
    if command == "merge --add":  # takes the change of a run, and opens no base but its own
        assert code == 0, said
        return
    assert "--trust-remote-code" in said or command in RUN_NO_CODE, said
    assert code == 2 or command == "doctor"  # which tells it


@pytest.mark.slow
@pytest.mark.parametrize("foreign", ["llama"], indirect=True)
@pytest.mark.parametrize("command", OPENERS)
def test_code_beside_a_family_that_is_known_is_left_alone(
    foreign, run, monkeypatch, capfd, tmp_path, command
):
    """transformers then has a model without it, so nothing is refused and nothing runs."""
    folder, canary = foreign
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    _, said = lrft(monkeypatch, capfd, *words_of(command, folder, run))
    assert not canary.exists() and "Traceback" not in said


@pytest.mark.parametrize("command", cases(OPENERS, ("doctor",)))
def test_the_flag_lets_the_code_in(foreign, run, monkeypatch, capfd, tmp_path, command):
    """So that the canary of the tests above would have sung; in the processes of a sweep, too, or they would fail."""
    folder, canary = foreign
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    said = lrft(monkeypatch, capfd, *words_of(command, folder, run), "--trust-remote-code")[1]
    assert canary.exists() is (command not in RUN_NO_CODE), said


@pytest.fixture
def repository(tmp_path):
    """A repository with a commit, whose configuration names programs to run; and what they would write."""
    folder, canary = tmp_path / "repository", tmp_path / "sung"
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}

    def git(*words):
        done = subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words],
            cwd=folder, env=environment, check=True, capture_output=True, text=True,
        )  # fmt: skip
        return done.stdout.strip()

    folder.mkdir()
    git("init", "-q", "-b", "main")
    (folder / "file").write_text("1")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\ntouch {canary}\ncat\n")
    hook.chmod(0o755)
    git("config", "core.fsmonitor", str(hook))
    git("config", "filter.evil.clean", str(hook))
    (folder / ".git" / "info" / "attributes").write_text("* filter=evil\n")
    (folder / "file").write_text("2")
    return folder, canary, git


@pytest.mark.skipif(shutil.which("git") is None, reason="the repository is made by git")
def test_the_commit_is_found_and_the_repository_runs_nothing(repository, monkeypatch):
    folder, canary, git = repository
    head = git("rev-parse", "HEAD")
    canary.unlink(missing_ok=True)
    monkeypatch.chdir(folder)
    (folder / "below").mkdir()
    assert commit_of(folder) == commit_of(folder / "below") == head[:12]
    assert not canary.exists()
    git("describe", "--always", "--dirty")
    assert canary.exists(), "asking git would have run it"
    git("worktree", "add", "-q", "-b", "other", str(folder.parent / "worktree"))
    git("pack-refs", "--all")
    assert commit_of(folder) == commit_of(folder.parent / "worktree") == head[:12]
    git("checkout", "-q", "-f", "--detach")
    assert commit_of(folder) == head[:12]


@pytest.mark.parametrize(
    "head", ["ref: refs/../../../secret", "ref: /etc/passwd", "x" * 40, "", "ref: refs/heads/none", "\0"]
)
def test_a_head_that_is_none_gives_no_commit(tmp_path, head):
    (tmp_path / ".git").mkdir()
    (tmp_path / "secret").write_text("a" * 40)
    (tmp_path / ".git" / "HEAD").write_text(head)
    assert commit_of(tmp_path) is None


MARK = "S3cret7Mark9"  # stands in every planted secret
HELD = {
    "HF_TOKEN": f"hf_{MARK}abcdefghijklmnopqrst",
    "WANDB_API_KEY": f"{MARK}0123456789abcdef",
    "AWS_SECRET_ACCESS_KEY": f'{MARK}/aws+"quoted"',
    "DB_PASSWORD": f"{MARK}-pass'word",
    "HTTPS_PROXY_OF_OURS": f"http://somebody:{MARK}-proxy@proxy.example:3128",
}
LEAKY = (
    f"https://somebody:{MARK}@host.example/data.jsonl",
    f"https://host.example/data.jsonl?token={MARK}&x=1",
    f"https://somebody:{MARK}{'x' * 80}@host.example/{'y' * 80}.jsonl",
    HELD["HF_TOKEN"],
    HELD["WANDB_API_KEY"],
    HELD["DB_PASSWORD"],
)
KEYS = (
    "model.name",
    "data.train",
    "data.template",
    "model.tokenizer",
    "logging.wandb",
    "optimizer.lr",
    "no.such",
)


@pytest.fixture
def planted(monkeypatch, tmp_path):
    for name, value in HELD.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)


def found_in(folder):
    return [str(path) for path in folder.rglob("*") if path.is_file() and MARK.encode() in path.read_bytes()]


@pytest.mark.parametrize("secret", cases(LEAKY, LEAKY[1:4]))
def test_a_secret_in_a_recipe_or_on_the_command_line_is_refused_and_not_repeated(
    planted, run, monkeypatch, capfd, tmp_path, secret
):
    recipe = (run / "recipe.yaml").read_text()
    written = (f"model: {json.dumps(secret)}\n", f"? {json.dumps(secret)}\n: 1\n", secret)
    (tmp_path / "recipes").mkdir()
    for place, text in enumerate(written):
        (tmp_path / "recipes" / f"{place}.yaml").write_text(recipe + text)
    overrides = [f"{key}={secret}" for key in KEYS]
    for words in (
        ["train", run / "recipe.yaml", *overrides, "--out", "new"],
        ["train", run / "recipe.yaml", overrides[4], "--out", "new", "--json"],
        ["recipes", "validate", *sorted((tmp_path / "recipes").iterdir())],
        ["train", secret],
        ["eval", secret],
    ):
        code, said = lrft(monkeypatch, capfd, *words)
        assert code in (2, 3) and MARK not in said and "Traceback" not in said, said
    shutil.rmtree(tmp_path / "recipes")
    assert not found_in(tmp_path) and not (tmp_path / "new").exists()


def test_a_secret_of_the_environment_is_in_no_byte_that_is_written_or_said(
    planted, run, monkeypatch, capfd, tmp_path
):
    recipe = run / "recipe.yaml"
    said = lrft(monkeypatch, capfd, "train", recipe, "--out", "new", "logging.tensorboard=false")[1]
    for words in (
        ["eval", "new"],
        ["merge", "new", "--out", "merged"],
        ["report", "new", "--out", "report"],
        ["env"],
    ):
        code, more = lrft(monkeypatch, capfd, *words)
        assert code == 0, more
        said += more
    assert MARK not in said and not found_in(tmp_path)
    assert (tmp_path / "merged" / "README.md").is_file() and (tmp_path / "new" / "adapter").is_dir()


@pytest.mark.slow
def test_a_variable_in_a_path_is_told_by_its_name(planted, run, monkeypatch, capfd):
    monkeypatch.setenv("FOLDER", "/nowhere/of-mine")
    for key in ("model.name", "data.train", "model.adapter", "data.template"):
        for name in ("FOLDER", "HF_TOKEN", "DB_PASSWORD"):
            code, said = lrft(
                monkeypatch, capfd, "recipes", "show", run / "recipe.yaml", f"{key}=${name}/x.jsonl"
            )
            assert code == 2 and f"${name}" in said and MARK not in said and "of-mine" not in said, said


def test_the_file_of_a_problem_is_masked_in_json_too(tmp_path):
    words = ("--space", "https://me:planted99@hub.example.org/a?token=planted88", "--budget", "1", "--json")
    ended = call(tmp_path, ("search", "quickstart", "--out", "out", *words))
    (problem,) = json.loads(ended.out)["error"]["problems"]
    assert ended.code == 2 and problem["file"].endswith("***@hub.example.org/a?***")
    assert "planted" not in ended.out + ended.err


def test_a_traceback_is_masked_too(planted, monkeypatch, capfd):
    def fail(*_, **__):
        raise RuntimeError(f"{LEAKY[0]} {HELD['DB_PASSWORD']} {HELD['AWS_SECRET_ACCESS_KEY']!r}")

    monkeypatch.setattr("lrft.commands.env.system_facts", fail)
    for options in ([], ["--json"]):
        code, said = lrft(monkeypatch, capfd, "env", *options)
        assert code == 1 and "RuntimeError: https://***@host.example/data.jsonl $DB_PASSWORD" in said
        assert MARK not in said


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://a:b@h/x?y=1#z and ftp://c@d", "http://***@h/x?***#z and ftp://***@d"),
        ("http://a:p@ss@h/", "http://***@h/"),
        ("see https://host.example/path, or a@b.c?d", "see https://host.example/path, or a@b.c?d"),
        ("ghp_" + "a1" * 18, "***"),
    ],
)
def test_what_is_masked_and_what_is_not(text, expected):
    assert masked(text) == expected
