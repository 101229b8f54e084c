"""Files are there whole or not at all, whatever the disk does; nothing of an attempt is left, no link is followed."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import threading
from pathlib import Path

import pytest
from safetensors import SafetensorError

from lrft.files import write
from lrft.files.append import append, open_log
from lrft.files.failure import WriteError, check_room, tell_failures
from lrft.files.fresh_folder import fresh_folder, remove_folder
from lrft.files.growing import GrowingFile, Lock
from lrft.files.scratch import scratch_file, scratch_folder, sweep
from lrft.files.unchanging import Unchanging
from tests.reliability.faulty_disk import ERRORS, FaultyDisk


def fill(folder: Path) -> None:
    with fresh_folder(folder, "replace") as fresh:
        fresh.write("a", "new")
        (fresh.path / "below").mkdir()
        (fresh.path / "below" / "b").write_text("new")


def fill_by_library(path: Path) -> None:
    with write.fresh_file(path) as scratch, open(scratch, "w") as file:
        file.write("new")


def fill_anew(folder: Path) -> None:
    with fresh_folder(folder) as fresh:
        fresh.write("a", "new")


def grow(path: Path) -> None:
    file = GrowingFile(path)
    assert file.open()
    try:
        file.append("new")
    finally:
        file.close()


WRITERS = {
    "file": (lambda place: write.write_file(place / "f", "new"), "f"),
    "deep file": (lambda place: write.write_file(place / "new" / "deep" / "f", "new"), "new/deep/f"),
    "changed file": (lambda place: write.write_changed(place / "f", "new"), "f"),
    "library's file": (lambda place: fill_by_library(place / "f"), "f"),
    "new file": (lambda place: write.write_new_file(place / "g", "new"), "g"),
    "line": (lambda place: append(place / "lines", "new", synced=True), "lines"),
    "growing file": (lambda place: grow(place / "lines"), "lines"),
    "folder": (lambda place: fill(place / "folder"), "folder/below/b"),
    "new folder": (lambda place: fill_anew(place / "out"), "out/a"),
    "log": (lambda place: open_log(place / "new" / "log").close(), "new/log"),
    "removed file": (lambda place: write.remove_file(place / "f"), "lines"),
}


def before(place: Path) -> Path:
    place.mkdir()
    (place / "f").write_text("old")
    (place / "lines").write_text("old")
    (place / "folder").mkdir()
    (place / "folder" / "a").write_text("old")
    return place


def read(place: Path) -> dict[str, str]:
    return {str(p.relative_to(place)): p.read_text() for p in sorted(place.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("stays", [False, True])
@pytest.mark.parametrize("name", WRITERS)
def test_whatever_operation_fails_there_is_the_old_or_the_new_and_nothing_else(tmp_path, name, stays):
    work, made = WRITERS[name]
    whole = before(tmp_path / "whole")
    old = read(whole)
    with FaultyDisk(whole).at_work() as disk:
        work(whole)
    new = read(whole)
    assert made in new and disk.done
    for at in range(1, len(disk.done) + 1):
        number, place = ERRORS[at % 4], before(tmp_path / str(at))
        broken = FaultyDisk(place, at, number, stays)
        try:
            with broken.at_work():
                work(place)
        except WriteError as error:
            assert os.strerror(number) in str(error) and "\n" not in str(error), broken.done
            assert error.number == number and str(error).count("could not be written") == 1
        else:
            assert broken.done[at - 1].split()[0] in ("exchange", "link"), broken.done
        assert read(place) in (old, new), broken.done
        if read(place) == old:  # and the same again works
            work(place)
            assert read(place) == new, broken.done


def test_the_sentence_has_the_file_the_cause_the_bytes_and_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    said = {}
    for number in (*ERRORS, errno.EACCES, errno.EISDIR):
        with (
            pytest.raises(WriteError) as caught,
            tell_failures(tmp_path / "f", "--out f", 1234, ", then go on"),
        ):
            raise OSError(number, os.strerror(number))
        said[number] = str(caught.value)
    assert said[errno.ENOSPC] == (
        "--out f: could not be written (No space left on device; 1,234 bytes are needed, 10 are free); free some "
        "space, then go on"
    )
    assert said[errno.EIO] == (
        "--out f: could not be written (Input/output error); the disk may be failing, so look at the system's log, "
        "then go on"
    )
    assert "quota" in said[errno.EDQUOT] and "for writing" in said[errno.EROFS]
    assert "the right to write" in said[errno.EACCES] and "another place" in said[errno.EISDIR]


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), 28),
        (Exception("Read-only file system (os error 30)"), 30),
        (RuntimeError("unable to resize file <p> to the right size: File too large (27)"), 27),
    ],
)
def test_what_libraries_raise_is_told_in_the_same_words(tmp_path, error, number):
    with pytest.raises(WriteError, match=os.strerror(number)), tell_failures(tmp_path / "f"):
        raise error


def test_errors_that_are_none_of_writing_pass(tmp_path):
    """A bug, a lost hub, and a file that was to be read while a folder is filled."""
    for error in (ValueError("wrong (5)"), ConnectionResetError(104, "reset"), OSError("no such model")):
        with pytest.raises(type(error)) as caught, tell_failures(tmp_path / "f"):
            raise error
        assert caught.value is error
    with pytest.raises(FileNotFoundError), fresh_folder(tmp_path / "out") as fresh:
        fresh.write("a", "a")
        (tmp_path / "rows.jsonl").read_text()
    assert not list(tmp_path.iterdir())


def test_the_failing_file_of_a_folder_is_named(tmp_path):
    said = r"^--out m: below/b: could not be written \(No such file"
    with pytest.raises(WriteError, match=said), fresh_folder(tmp_path / "m", name="--out m") as fresh:
        (fresh.path / "below" / "b").write_text("no folder for it")


def test_too_little_room_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(WriteError, match="11 bytes are needed, 10 are free"):
        check_room(tmp_path / "not" / "there", 11)
    with pytest.raises(WriteError, match="11 bytes are needed"), fresh_folder(tmp_path / "out", needed=11):
        pytest.fail("it does not begin")
    check_room(tmp_path, 10)
    assert not list(tmp_path.iterdir())


def test_no_link_is_followed(tmp_path):
    """Whatever is written, a link of that name that somebody planted loses its place or is refused."""
    for name, (work, made) in WRITERS.items():
        place, target = tmp_path / name.replace("'", ""), tmp_path / "target"
        target.write_text("mine")
        place.mkdir()
        for path in ("f", "g", "lines"):
            (place / path).symlink_to(target)
        try:
            work(place)
        except (WriteError, FileExistsError):
            pass
        else:
            assert not (place / made).is_symlink() or name == "removed file"
        assert target.read_text() == "mine", name


def test_a_pipe_is_not_waited_at(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for add in (lambda path: append(path, "x", "/save pipe"), open_log):
        with pytest.raises(WriteError, match=r"pipe: is a pipe or a device; give another place"):
            add(tmp_path / "pipe")


def test_a_lock_is_made_through_no_link_and_is_one_process_alone(tmp_path):
    (tmp_path / "target").write_text("mine")
    (tmp_path / ".lock").symlink_to(tmp_path / "target")
    with pytest.raises(OSError):
        Lock(tmp_path / ".lock").take()
    assert (tmp_path / "target").read_text() == "mine" and not Lock(tmp_path / ".lock").is_taken
    one, other = Lock(tmp_path / "run" / ".lock"), Lock(tmp_path / "run" / ".lock")
    assert one.take() and not other.take() and other.is_taken
    one.give_back()
    assert not other.is_taken and other.take()


def test_what_a_killed_process_left_is_cleared_away_and_what_is_being_written_is_not(tmp_path):
    left = [tmp_path / ".f.0123abcd.tmp", tmp_path / ".g.0123abcd.tmp", tmp_path / ".f.other.tmp"]
    for path in left:
        path.write_text("half")
    (tmp_path / ".f.4567abcd.tmp").mkdir()
    with scratch_file(tmp_path / "f") as (_, held), scratch_folder(tmp_path / "f") as folder:
        write.write_file(tmp_path / "f", "new")
        assert held.exists() and folder.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".f.other.tmp", ".g.0123abcd.tmp", "f"]
    sweep(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".f.other.tmp", "f"]


def test_two_that_write_one_file_at_once_leave_one_of_the_two(tmp_path):
    texts = ["a" * 50_000, "b" * 50_000]
    errors = []

    def work(text):
        try:
            for _ in range(40):
                write.write_file(tmp_path / "f", text)
        except Exception as error:
            errors.append(error)

    both = [threading.Thread(target=work, args=(text,)) for text in texts]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert not errors and (tmp_path / "f").read_text() in texts
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_name_as_long_as_names_may_be_is_written(tmp_path):
    write.write_file(tmp_path / ("ü" * 127), "new")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["new"]


def test_a_file_that_says_the_same_is_left_alone(tmp_path):
    path = tmp_path / "f"
    assert write.write_changed(path, "one")
    with FaultyDisk(tmp_path).at_work() as disk:
        assert not write.write_changed(path, "one")
    assert disk.done == [] and write.write_changed(path, "two") and path.read_text() == "two"


def test_a_library_that_writes_nothing_without_a_word_is_found_out(tmp_path):
    (tmp_path / "trace.json").write_text("old")
    with pytest.raises(WriteError, match="nothing arrived"), write.fresh_file(tmp_path / "trace.json"):
        pass
    assert read(tmp_path) == {"trace.json": "old"}


def test_a_folder_that_another_process_made_meanwhile_stays_where_that_is_asked_for(tmp_path):
    with fresh_folder(tmp_path / "cache", "keep") as fresh:
        fresh.write("a", "slow")
        fill(tmp_path / "cache")
    assert read(tmp_path / "cache")["a"] == "new"
    with pytest.raises(WriteError, match="Directory not empty"), fresh_folder(tmp_path / "cache") as fresh:
        fresh.write("a", "late")
    assert read(tmp_path / "cache")["a"] == "new" and len(list(tmp_path.iterdir())) == 1


def test_a_file_with_a_second_name_is_not_written_into(tmp_path):
    (tmp_path / "shared").write_text("old")
    with fresh_folder(tmp_path / "out") as fresh:
        fresh.link(tmp_path / "shared")
        fresh.write("shared", "new")
    assert read(tmp_path) == {"out/shared": "new", "shared": "old"}


def test_a_removed_folder_loses_its_name_first(tmp_path, monkeypatch):
    fill(tmp_path / "step-1")
    monkeypatch.setattr(shutil, "rmtree", lambda path, **settings: None)  # killed here
    remove_folder(tmp_path / "step-1")
    assert not (tmp_path / "step-1").exists()
    monkeypatch.undo()
    sweep(tmp_path)
    assert not list(tmp_path.iterdir())


def save(folder: Path, beside: Unchanging, weights: str) -> list[str]:
    """A save as of `last/`; what it asked of the disk."""

    def tokenizer(path: Path) -> None:
        for name in ("tokenizer.json", "template.jinja"):
            (path / name).write_text(name)

    disk = FaultyDisk(folder.parent)
    with disk.at_work(), fresh_folder(folder, "replace") as fresh:
        beside.fill(fresh, tokenizer)
        beside.write(fresh, "recipe.yaml", b"the same")
        beside.write(fresh, "weights", weights.encode())
    beside.keep(folder)
    return [line.split()[0] for line in disk.done]


def test_what_stays_the_same_is_written_and_synced_once(tmp_path):
    """A later save of four files costs one write and two syncs of what is new, and three links."""
    beside, last = Unchanging(), tmp_path / "last"
    first = save(last, beside, "1")
    assert first.count("fsync") == 4 + 2 and first.count("link") == 0
    second = save(last, beside, "2")
    assert second.count("link") == 3 and second.count("fsync") == 1 + 2 and second.count("write") == 1
    assert read(last) == {
        "recipe.yaml": "the same",
        "template.jinja": "template.jinja",
        "tokenizer.json": "tokenizer.json",
        "weights": "2",
    }


def test_what_somebody_touched_meanwhile_is_written_anew(tmp_path):
    beside, last = Unchanging(), tmp_path / "last"
    save(last, beside, "1")
    (last / "tokenizer.json").write_text("edited")
    (last / "recipe.yaml").write_text("edited")
    save(last, beside, "2")
    assert "edited" not in read(last).values()
    save(last, Unchanging(), "3")
    assert read(last)["weights"] == "3"


@pytest.mark.parametrize("name", ["new file", "new folder"])
def test_what_would_be_refused_next_time_is_not_there_after_a_failure(tmp_path, name):
    """The last sync fails, and the same command has to find the place free."""
    work, made = WRITERS[name]
    whole = before(tmp_path / "whole")
    with FaultyDisk(whole).at_work() as disk:
        work(whole)
    place = before(tmp_path / "broken")
    with pytest.raises(WriteError), FaultyDisk(place, len(disk.done), errno.EIO, True).at_work():
        work(place)
    assert not (place / made).exists()
    work(place)
    assert read(place) == read(whole)


def test_what_a_sweep_takes_for_abandoned_before_it_is_held_is_made_again(tmp_path, monkeypatch):
    """The sweep has the lock when the maker asks for it, and removes the file a moment later."""
    flock, swept = fcntl.flock, []

    def taken(descriptor, operation):
        if not swept:
            [path] = tmp_path.iterdir()
            swept.append((path, os.open(path, os.O_RDONLY)))
            flock(swept[0][1], operation)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", taken)
    with scratch_file(tmp_path / "f") as (_, path):
        assert path != swept[0][0]
        swept[0][0].unlink()
        assert path.exists()
    os.close(swept[0][1])
    assert not list(tmp_path.iterdir())
