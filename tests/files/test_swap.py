"""A folder put in the place of another: there is always one, and it is whole."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from lrft.files import fresh_folder as swap

ways = pytest.mark.parametrize("exchanges", [True, False])


def make(folder: Path, content: str) -> Path:
    folder.mkdir()
    for name in ("a", "b"):
        (folder / name).write_text(content)
    return folder


def read(folder: Path) -> set[str]:
    return {(folder / name).read_text() for name in ("a", "b")}


@pytest.fixture
def without_exchange(monkeypatch):
    monkeypatch.setattr(swap, "_exchange", lambda a, b: False)


@ways
def test_the_new_folder_replaces_the_old(tmp_path, exchanges, request):
    if not exchanges:
        request.getfixturevalue("without_exchange")
    final = tmp_path / "best"
    for content in ("first", "second", "third"):
        swap.replace_folder(make(tmp_path / ".best.tmp", content), final)
        assert read(final) == {content}
        assert [path.name for path in tmp_path.iterdir()] == ["best"]


@ways
def test_a_failure_at_any_call_leaves_a_whole_folder(tmp_path, monkeypatch, exchanges):
    """Every sync and rename fails once, in turn; a kill at the same place leaves the same."""
    if not exchanges:
        monkeypatch.setattr(swap, "_exchange", lambda a, b: False)
    for wanted in range(30):
        base = tmp_path / str(wanted)
        base.mkdir()
        final, new = make(base / "best", "old"), make(base / "new", "new")
        count = 0

        def failing(real, wanted=wanted):
            def call(*args):
                nonlocal count
                count += 1
                if count > wanted:
                    raise OSError(28, "No space left on device")
                return real(*args)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failing(os.fsync))
            patch.setattr(os, "rename", failing(os.rename))
            patch.setattr(swap, "_exchange", failing(swap._exchange))
            try:
                swap.replace_folder(new, final)
            except OSError:
                finished = False
            else:
                finished = True
        swap.recover_folder(final)
        assert read(final) in ({"old"}, {"new"})
        if finished:
            break
    assert finished and wanted > 4 and read(final) == {"new"}


def test_where_names_can_be_exchanged_there_is_a_folder_at_every_moment(tmp_path):
    final = make(tmp_path / "best", "0")
    if not swap._exchange(final, make(tmp_path / "other", "1")):
        pytest.skip("this file system cannot exchange names")
    missing, done = [], threading.Event()

    def look() -> None:
        while not done.is_set():
            if not final.is_dir():
                missing.append(True)

    watcher = threading.Thread(target=look)
    watcher.start()
    for count in range(200):
        swap.replace_folder(make(tmp_path / "new", str(count)), final)
    done.set()
    watcher.join()
    assert not missing
