"""Which folders are reported on, in which state they are, and what is written."""

from __future__ import annotations

import json
import os
import stat
import sys

import pytest

from lrft.lab.report.read import find_runs, read_runs
from lrft.lab.report.report import report
from lrft.registry.errors import DamagedFile, LrftError, MissingExtra, UsageError
from lrft.training.folder import RunFolder


def state(folder):
    (run,) = read_runs(find_runs([folder]))
    return run.state


def test_a_finished_run_is_told_with_what_was_written(looked_at, tmp_path):
    found = report([looked_at], tmp_path / "new" / "r.html")
    page = (tmp_path / "new" / "r.html").read_text()
    assert found["bytes"] == len(page.encode()) and page.startswith("<!DOCTYPE html>")
    assert found["runs"] == [
        {"run": looked_at.name, "state": "finished at step 3", "step": 3, "inspected": True}
    ]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["r.html"]


def test_a_killed_run_gives_a_page_that_says_so(looked_at, copied, tmp_path):
    folder = copied(looked_at)
    (folder / "result.json").unlink()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text(f"{lines[0]}\n{lines[1]}\n{lines[2][:20]}")
    assert state(folder).kind == "stopped"
    assert "stopped after step 2 of 3" in state(folder).sentence
    report([folder], tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert "not finished: it stopped after step 2 of 3" in page and "could not be read" not in page


def test_a_run_in_progress_gives_a_page_that_says_so(looked_at, copied, tmp_path):
    folder = copied(looked_at)
    (folder / "result.json").unlink()
    training = RunFolder(folder)
    training.lock()
    try:
        report([folder], tmp_path / "r.html")
        assert "in progress: step 3 of 3 so far" in (tmp_path / "r.html").read_text()
    finally:
        training.unlock()
    assert state(folder).kind == "stopped"


def test_looking_at_the_lock_takes_it_from_nobody(looked_at, copied):
    folder = RunFolder(copied(looked_at))
    assert not folder.is_locked
    folder.lock()  # is free
    assert RunFolder(folder.path).is_locked
    folder.unlock()
    assert not RunFolder(folder.path / "nowhere").is_locked and not (folder.path / "nowhere").exists()


def test_a_run_that_has_not_stepped_yet_gives_a_page(looked_at, copied, tmp_path):
    folder = copied(looked_at)
    for name in ("result.json", "metrics.jsonl"):
        (folder / name).unlink()
    report([folder], tmp_path / "r.html")
    assert "No step was written down yet." in (tmp_path / "r.html").read_text()


def test_damaged_lines_are_told(looked_at, copied, tmp_path):
    folder = copied(looked_at)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join([lines[0], "damaged", *lines[1:]]) + "\n")
    report([folder], tmp_path / "r.html")
    told = "1 of 4 lines of metrics.jsonl could not be read and are left out, the first is line 2"
    assert told in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder.mkdir(), r"is not a run folder \(it holds no recipe\.yaml\)"),
        (lambda folder: None, r"is not a run folder \(it holds no recipe\.yaml\)"),
    ],
    ids=["empty", "absent"],
)
def test_a_folder_that_is_no_run_is_refused_in_one_sentence(tmp_path, make, message):
    make(tmp_path / "folder")
    with pytest.raises(UsageError, match=message) as told:
        report([tmp_path / "folder"], tmp_path / "r.html")
    assert "\n" not in str(told.value) and not (tmp_path / "r.html").exists()


def test_a_page_is_written_over_an_older_page_and_over_nothing_else(looked_at, tmp_path):
    out = tmp_path / "r.html"
    report([looked_at], out)
    page = out.read_bytes()
    out.write_bytes(page.replace(b"<main>", b"<main>an older one"))
    report([looked_at], out)
    assert out.read_bytes() == page
    out.write_text("<!DOCTYPE html>\n<html>mine</html>")
    (tmp_path / "recipe.yaml").write_text("mine")
    os.mkfifo(tmp_path / "pipe")
    for name in ("r.html", "recipe.yaml", "pipe"):
        with pytest.raises(UsageError, match="is there already and no page of lrft report"):
            report([looked_at], tmp_path / name)
    assert out.read_text().endswith("mine</html>") and (tmp_path / "recipe.yaml").read_text() == "mine"
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)


def test_the_adapter_folder_of_a_run_stands_for_it(looked_at, tmp_path):
    report([looked_at], tmp_path / "run.html")
    report([looked_at / "adapter"], tmp_path / "adapter.html")
    assert (tmp_path / "adapter.html").read_text() == (tmp_path / "run.html").read_text()


def test_a_run_that_is_named_twice_is_refused(looked_at, tmp_path):
    with pytest.raises(UsageError, match="named twice"):
        report([looked_at, looked_at / ".." / looked_at.name], tmp_path / "r.html")


@pytest.mark.parametrize("name", ["run.json", "plan.json", "eval/adapter.json", "eval/adapter-samples.jsonl"])
@pytest.mark.parametrize("content", ["{", "[1]\n"])
def test_a_damaged_file_is_refused_by_name(looked_at, copied, tmp_path, name, content):
    folder = copied(looked_at)
    (folder / name).write_text(content)
    with pytest.raises(
        DamagedFile, match=f"{name.rpartition('/')[2]}: is not what lrft wrote|is torn|a list"
    ) as told:
        report([folder], tmp_path / "r.html")
    assert "\n" not in str(told.value)


def test_an_inspection_of_another_version_is_refused(looked_at, copied, edit, tmp_path):
    folder = copied(looked_at)
    edit(next((folder / "inspect").iterdir()), format=0)
    with pytest.raises(UsageError, match="is of another version"):
        report([folder], tmp_path / "r.html")


def test_an_inspection_of_an_earlier_step_says_which(looked_at, copied, tmp_path):
    folder = copied(looked_at)
    file = next((folder / "inspect").iterdir())
    file.write_text(json.dumps({**json.loads(file.read_text()), "step": 2}))
    report([folder], tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert "The weights of step 2;" in page and "The run is at step 3 by now" in page


def test_runs_of_one_name_are_told_apart(looked_at, copied, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    folders = [copied(looked_at, "a/run"), copied(looked_at, "b/run")]
    assert [run.name for run in read_runs(find_runs(folders))] == ["a/run", "b/run"]


def test_without_a_name_the_latest_run_is_meant(looked_at, copied, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no run under runs/"):
        report()
    copied(looked_at, "runs/one")
    assert report()["runs"][0]["run"] == "one" and (tmp_path / "report.html").is_file()


def test_a_folder_is_no_place_for_a_page(looked_at, tmp_path):
    with pytest.raises(UsageError, match="is a folder; give the file"):
        report([looked_at], tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(LrftError, match="could not be written"):
        report([looked_at], tmp_path / "file" / "r.html")


def test_runs_are_inspected_first_where_that_is_asked_for_and_was_not_done(
    trained, tmp_path, monkeypatch, capsys
):
    run = trained("lora", "train.seed=5")
    other = trained("mola")
    first = report([run, other], tmp_path / "r.html", inspected=True)
    assert [one["inspected"] for one in first["runs"]] == [True, False]
    assert "mola is no change of a weight" in capsys.readouterr().err
    monkeypatch.setattr("lrft.lab.report.report.inspect", None)  # and not again
    assert report([run], tmp_path / "r.html", inspected=True)["runs"][0]["inspected"]


def test_a_run_without_a_checkpoint_is_told_and_shown(looked_at, copied, tmp_path, capsys):
    """`copied` leaves the checkpoints behind."""
    folder = copied(looked_at)
    assert report([folder], tmp_path / "r.html", inspected=True)["runs"][0]["inspected"]
    assert "has no checkpoint, so its weights cannot be looked at" in capsys.readouterr().err


def test_full_fine_tuning_has_a_page(trained, tmp_path):
    run = trained("lora", "adapter=null", "trainable=full", "optimizer.lr=0.0001")
    report([run], tmp_path / "r.html", inspected=True)
    assert "intruder dimensions" in (tmp_path / "r.html").read_text()


def test_pictures_without_matplotlib_are_refused_with_the_install_line(looked_at, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'lrft\[plot\]'"):
        report([looked_at], tmp_path / "r.html", png=tmp_path / "png")
    assert not (tmp_path / "r.html").exists()


def test_pictures_are_drawn_without_a_display(looked_at, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.delenv("DISPLAY", raising=False)
    found = report([looked_at], tmp_path / "r.html", png=tmp_path / "png")
    names = {path.rpartition("/")[2] for path in found["pictures"]}
    assert {"loss.png", "lr.png", "grad-norm.png", "tokens-per-second.png"} <= names
    for name in names:
        assert (tmp_path / "png" / name).read_bytes().startswith(b"\x89PNG")
    assert "matplotlib.pyplot" not in sys.modules  # which would look for a display
