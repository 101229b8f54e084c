"""Nothing is written outside of the folder that the user named, whatever a name says or a run folder holds."""

import hashlib
import os
import shutil
from functools import partial
from pathlib import Path

import pytest

from lrft.registry.errors import UsageError
from lrft.training.folder import RunFolder, find, new_folder, places
from tests.reliability.called import DATA, RECIPE, cases, lrft

LONG = "n" * 300


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    from lrft.api.training.train import train

    folder = tmp_path_factory.mktemp("names")
    (folder / "recipe.yaml").write_text(RECIPE.format(model=tiny(), data=DATA))
    train(folder / "recipe.yaml", folder / "run")
    return folder / "run"


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run, to plant something in."""
    return Path(shutil.copytree(trained, tmp_path / "inside" / "run"))


@pytest.fixture
def call(monkeypatch, capfd, tmp_path):
    (tmp_path / "inside").mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / "inside")

    return partial(lrft, monkeypatch, capfd)


def held(folder):
    """Path -> sha256 of everything below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


PLANTED = (
    "adapter",
    "eval",
    "checkpoints",
    "inspect",
    "posterior",
    "profile",
    ".lock",
    "metrics.jsonl",
    "run.json",
    "recipe.yaml",
)
SCRATCH = (
    ".run.json.tmp",
    ".plan.json.tmp",
    ".recipe.yaml.tmp",
    ".result.json.tmp",
    ".adapter.tmp",
    ".adapter.old",
)
DEEPER = ("checkpoints/step-1", "checkpoints/step-1/state.json", "eval/adapter.json", "adapter/README.md")
WRITERS = (["eval"], ["merge", "--out", "out"], ["train", "--resume", "--more-steps", "1"])


QUICK = ("adapter", "eval", ".lock", ".run.json.tmp", "checkpoints/step-1")


@pytest.mark.parametrize("name", cases((*PLANTED, *SCRATCH, *DEEPER), QUICK))
def test_a_link_in_a_run_folder_is_refused_and_what_it_points_to_stays(run, call, tmp_path, name):
    outside, entry = tmp_path / "outside", run / name
    if entry.is_dir():
        shutil.copytree(entry, outside)
        shutil.rmtree(entry)
    else:
        outside.mkdir()
        entry.parent.mkdir(exist_ok=True)
        if entry.exists():
            shutil.move(entry, outside / "file")
        else:
            (outside / "file").write_text("precious")
    folders = ("adapter", "eval", "checkpoints", "inspect", "posterior", "profile", "step-1")
    folder = name.rpartition("/")[2] in folders
    entry.symlink_to(outside if folder else outside / "file")
    before = held(outside)
    for command, *options in WRITERS:
        code, said = call(command, run, *options)
        assert code == 2 and f"{name.rpartition('/')[2]}: is a link" in said and "Traceback" not in said, said
    assert held(outside) == before and not (tmp_path / "inside" / "out").exists()


def test_a_pipe_in_a_run_folder_is_refused_and_not_waited_for(run, call):
    os.mkfifo(run / "adapter" / "more.json")
    assert "is a pipe or a device" in call("eval", run)[1]
    (run / "adapter" / "more.json").unlink()
    (run / ".lock").unlink()
    os.mkfifo(run / ".lock")
    assert RunFolder(run).is_locked in (True, False)
    with pytest.raises(UsageError, match="pipe"):
        RunFolder(run).lock()


def test_the_lock_keeps_what_the_file_holds(run):
    (run / ".lock").write_text("kept")
    folder = RunFolder(run)
    folder.lock()
    folder.unlock()
    assert (run / ".lock").read_text() == "kept"


def test_what_trackers_link_to_and_an_out_that_is_a_link_are_the_users_own(run, call, tmp_path):
    (run / "wandb").mkdir()
    (run / "wandb" / "latest-run").symlink_to(tmp_path)
    find(run)
    (tmp_path / "disk").mkdir()
    (tmp_path / "inside" / "out").symlink_to(tmp_path / "disk")
    code, said = call("merge", run, "--out", "out")
    assert code == 0, said
    assert (tmp_path / "disk" / "config.json").is_file() and (tmp_path / "inside" / "out").is_symlink()


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "../../etc/passwd",
        "/etc/x",
        "a/../../x",
        "..",
        ".",
        "~",
        "CON",
        "nul.txt",
        "a\0b",
        "é",
        LONG,
        " ",
    ],
)
def test_a_recipe_name_makes_a_folder_directly_below_the_root(tmp_path, name):
    path = new_folder(name, tmp_path / "runs")
    assert path.parent == tmp_path / "runs" and path.resolve().parent == (tmp_path / "runs").resolve()
    path.mkdir(parents=True)
    assert len(path.name) < 140


def test_a_run_that_is_named_is_below_the_root_or_at_its_path(tmp_path):
    assert places("a", tmp_path) == [Path("a"), tmp_path / "a"]
    for name in ("../a", "/a", "b/../../a"):
        assert places(name, tmp_path) == [Path(name)]


NAMED = (
    ["train", "NAME"],
    ["train", "quickstart", "--out", "NAME"],
    ["train", "NAME", "--resume"],
    ["eval", "NAME"],
    ["merge", "NAME", "--out", "out"],
    ["export", "NAME", "--for", "peft", "--out", "out"],
    ["inspect", "NAME"],
    ["doctor", "NAME"],
    ["chat", "NAME"],
    ["report", "NAME", "--out", "NAME"],
    ["recipes", "show", "NAME"],
    ["recipes", "cp", "quickstart", "NAME"],
    ["recipes", "validate", "NAME"],
    ["plan", "quickstart", "model.name=NAME"],
    ["data", "show", "quickstart", "data.train=NAME"],
    ["data", "show", "quickstart", "data.train=NAME.jsonl"],
    ["recipes", "show", "quickstart", "data.template=NAME"],
    ["recipes", "show", "quickstart", "model.adapter=NAME"],
    ["reproduce", "NAME"],
    ["compare", "NAME", "NAME", "--out", "NAME"],
    ["sweep", "NAME", "optimizer.lr=1e-4,1e-3", "--out", "NAME"],
    ["search", "NAME", "--space", "NAME", "--budget", "2", "--out", "NAME"],
    ["search", "quickstart", "--space", "NAME", "--budget", "2", "--out", "NAME"],
    ["federate", "NAME", "--out", "NAME"],
    ["posterior", "NAME"],
    ["eval", "NAME", "--posterior"],
    ["combine", "NAME", "NAME", "--method", "svd", "--out", "NAME"],
    ["generate-adapter", "fit", "NAME", "--method", "icm_lora", "--out", "NAME"],
    ["generate-adapter", "draw", "NAME", "NAME", "--out", "NAME"],
    ["transfer", "NAME", "--to", "NAME", "--out", "NAME"],
    ["delta", "diff", "NAME", "NAME", "--out", "NAME"],
    ["delta", "apply", "NAME", "NAME", "--out", "out"],
    ["delta", "compress", "NAME", "--out", "out"],
    ["merge", "NAME", "--add", "NAME", "--out", "out"],
    ["serve", "NAME", "--port", "0"],
    ["serve", "NAME", "NAME", "--port", "0"],
    ["data", "augment", "quickstart", "--prompt", "NAME", "--out", "NAME.jsonl"],
    ["data", "rank", "NAME", "--method", "logme", "--source", "NAME", "--out", "NAME.json"],
    ["data", "rank", "quickstart", "--method", "textemb", "--source", "NAME", "--out", "NAME.json"],
    ["choose", "NAME", "--out", "NAME"],
    ["choose", "quickstart", "--past", "NAME", "--out", "NAME"],
    ["data", "select", "quickstart", "--method", "length", "--budget", "2", "--out", "NAME.jsonl"],
)


@pytest.mark.parametrize("words", cases(NAMED, NAMED[:5]), ids=" ".join)
def test_a_name_of_300_characters_is_one_sentence(call, tmp_path, words):
    code, said = call(*(word.replace("NAME", LONG) for word in words))
    assert code in (1, 2, 3) and "Traceback" not in said and "error: " in said, said[-600:]
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]
