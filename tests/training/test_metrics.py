"""What a run shows and writes, and what happens where it cannot."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from lrft.registry.errors import LrftError, UsageError
from lrft.training.folder import RunFolder
from lrft.training.metrics import Bar, MetricsFile
from lrft.training.trackers.wandb import has_account


def fake_run(step: int = 1):
    run = SimpleNamespace(rank=0, step=step, metrics={"loss": 1.0})
    run.record = run.metrics.update
    return run


def test_a_disk_that_is_full_stops_the_run_in_one_sentence(tmp_path, monkeypatch):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.start(fake_run(0))

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(LrftError, match=r"No space left on device.*--resume"):
        file.after_step(fake_run())


def test_a_run_folder_that_cannot_be_made_is_a_usage_error(tmp_path):
    (tmp_path / "taken").write_text("a file")
    for path in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(UsageError, match=r"--out .*give another one"):
            RunFolder(path).lock()


@pytest.mark.parametrize(("host", "known"), [("api.wandb.ai", True), ("github.com", False)])
def test_a_netrc_counts_as_an_account_only_where_it_knows_the_host(tmp_path, monkeypatch, host, known):
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not has_account()
    (tmp_path / "netrc").write_text(f"machine {host} login user password x\n")
    assert has_account() is known


def lines_of(capsys, total: int, every: int | None = None, first: int = 0, scores: tuple[int, ...] = ()):
    """The steps that have a line where there is no terminal."""
    bar = Bar(every)
    run = SimpleNamespace(rank=0, step=first, total_steps=total, stop_signal=None)
    bar.start(run)
    for run.step in range(first + 1, total + 1):
        run.metrics = {"loss": 1.0, "lr": 0.1} | ({"eval_loss": 1.0} if run.step in scores else {})
        bar.after_step(run)
    said = capsys.readouterr().err
    assert said.isprintable() or not set(said) - set("\n") & {chr(code) for code in range(32)}
    return [int(line.split("/")[0].removeprefix("step ")) for line in said.splitlines()]


@pytest.mark.parametrize(("total", "about"), [(3, 3), (99, 99), (250, 126), (5000, 101), (100_000, 101)])
def test_a_run_without_a_terminal_has_about_a_hundred_lines(capsys, total, about):
    steps = lines_of(capsys, total)
    assert len(steps) == about and (steps[0], steps[-1]) == (1, total)


def test_first_and_last_step_and_held_out_scores_always_have_a_line(capsys):
    assert lines_of(capsys, 27, every=10, first=3, scores=(6, 13)) == [4, 6, 10, 13, 20, 27]
