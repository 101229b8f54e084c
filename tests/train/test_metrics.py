"""What a run shows and writes, and what happens where it cannot."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from lrft.core.errors import LrftError, UsageError
from lrft.train.folder import RunFolder
from lrft.train.metrics import MetricsFile, has_account


def fake_run(step: int = 1):
    run = SimpleNamespace(rank=0, step=step, metrics={"loss": 1.0})
    run.record = run.metrics.update
    return run


def test_a_disk_that_is_full_stops_the_run_in_one_sentence(tmp_path, monkeypatch):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.start(fake_run(0))

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
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
