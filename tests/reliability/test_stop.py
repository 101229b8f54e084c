"""`lrft.core.stop`: what a first signal does, a second and a third, and where."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lrft.core import stop
from lrft.registry.errors import DataError, Interrupted

INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


def strike(number: int = TERM) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def handlers():
    """Whatever a test does, handlers and flag are afterwards as they were."""
    before = [signal.getsignal(number) for number in stop.SIGNALS]
    yield
    assert [signal.getsignal(number) for number in stop.SIGNALS] == before
    assert stop.asked() is None and not stop.wanted()


@pytest.mark.parametrize(("number", "code"), [(INT, 130), (TERM, 143), (HUP, 129)])
def test_a_signal_waits_for_the_next_poll_and_is_one_sentence(number, code):
    done = []
    with pytest.raises(Interrupted) as stopped, stop.listening("two rows are kept; the same command goes on"):
        strike(number)
        done.append("what was begun")
        stop.poll()
        done.append("never")
    assert done == ["what was begun"] and stopped.value.exit_code == code
    assert str(stopped.value).endswith(": two rows are kept; the same command goes on")


def test_a_signal_that_nobody_polled_for_changes_nothing():
    with stop.listening():
        strike()


def test_what_is_held_is_not_cut():
    done = []
    with pytest.raises(Interrupted), stop.listening():
        with stop.held():
            strike()
            stop.poll()
            assert stop.asked() == TERM and not stop.wanted()
            done.append("whole")
        stop.poll()
    assert done == ["whole"]


def test_a_second_signal_is_not_waited_for_even_where_the_first_is_held():
    with pytest.raises(Interrupted) as stopped, stop.listening(), stop.held():
        strike(INT)
        strike(TERM)
        raise AssertionError("the second signal was not seen")
    assert stopped.value.exit_code == 130  # of the first


def test_a_third_signal_is_the_systems():
    with pytest.raises(Interrupted), stop.listening():
        try:
            strike()
            strike()
        finally:
            assert signal.getsignal(TERM) is signal.SIG_DFL


def test_work_of_others_is_left_at_once_unless_it_is_held():
    with pytest.raises(Interrupted), stop.listening(), stop.at_once():
        strike()
        raise AssertionError("the signal was not seen")
    with pytest.raises(Interrupted), stop.listening():
        with stop.held(), stop.at_once():
            strike()
        stop.poll()


def test_an_import_is_left_at_once(tmp_path, monkeypatch):
    (tmp_path / "slow_module.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\nDONE = 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Interrupted), stop.listening():
        import slow_module  # noqa: F401

        raise AssertionError("the signal was not seen")
    assert "slow_module" not in sys.modules


def test_an_import_that_makes_its_own_error_of_a_signal_is_a_stop_too(tmp_path, monkeypatch):
    (tmp_path / "wrapping.py").write_text(
        "import os, signal\n"
        "try:\n    import struck_inside\n"
        "except BaseException as error:\n    raise ImportError('broken') from error\n"
    )
    (tmp_path / "struck_inside.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Interrupted) as stopped, stop.listening():
        import wrapping  # noqa: F401
    assert stopped.value.exit_code == 130


def test_a_failure_that_is_no_stop_is_told_as_it_is_though_a_signal_came():
    with pytest.raises(DataError, match="row 3"), stop.listening():
        strike()
        try:
            stop.poll()
        except stop.Stopped as stopped:
            raise DataError("row 3 is broken") from stopped
    with pytest.raises(ZeroDivisionError), stop.listening():
        strike()
        raise ZeroDivisionError


def test_the_innermost_says_what_is_kept():
    inner, outer = stop.listening(lambda: "of the run"), stop.listening("of the command")
    with pytest.raises(Interrupted, match="of the run"), outer, inner:
        strike()
        stop.poll()


def test_nobody_takes_a_stop_for_a_failure():
    with pytest.raises(Interrupted), stop.listening():
        strike()
        try:
            stop.poll()
        except Exception:
            raise AssertionError("a stop is no Exception") from None


def test_a_stop_where_nothing_can_be_raised_is_not_shown_and_not_lost(capsys):
    class Dying:
        def __del__(self):
            with stop.at_once():
                strike()

    with pytest.raises(Interrupted), stop.listening():
        dying = Dying()
        del dying
        gc.collect()
        stop.poll()
    assert capsys.readouterr().err == ""


def test_outside_the_main_thread_nothing_is_installed_and_nothing_raises():
    found = []

    def work():
        with stop.listening(), stop.held(), stop.at_once():
            stop.poll()
            found.append(stop.asked())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [None]


def test_an_answered_signal_is_forgotten():
    with stop.listening():
        strike(INT)
        stop.forget()
        stop.poll()


def test_a_hang_up_that_is_ignored_stays_ignored():
    """As `nohup` asks; SIGINT is heard though a shell gave a job in the background none."""
    code = (
        "import os, signal\nfrom lrft.core import stop\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "with stop.listening():\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n    assert stop.asked() is None\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n    assert stop.asked() == signal.SIGINT\n"
        "assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN\n"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
