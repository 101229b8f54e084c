"""Whether somebody asked to stop: one flag that the signal handlers set, polled wherever time is spent.

The first SIGINT, SIGTERM or SIGHUP only sets the flag, and `poll` raises `Stopped` where nothing is half done. What
must not be cut is `held`. Work of other libraries, which never poll, is left `at_once`, and so is an import: there the
signal itself raises. A second signal is not waited for, and a third is the system's.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lrft.registry.errors import Interrupted
    from lrft.registry.protocols import SignalHandler

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
WORDS = {2: "interrupted (SIGINT)", 15: "terminated (SIGTERM)", 1: "hung up (SIGHUP)"}
NOTHING = "nothing was written; the same command begins again"
IMPORT = "<frozen importlib"  # what the file of a frame is called that imports


class Stopped(BaseException):
    """Somebody asked to stop. No `Exception`, so that nobody who catches those takes it for a failure.

    Attributes:
        number: of the signal.
        kept: what is left and what to type next; the innermost who knows says it.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.kept: str | None = None
        super().__init__(number)

    def error(self) -> Interrupted:
        """The same for whoever called: one sentence, and the exit code."""
        from lrft.registry.errors import Interrupted

        return Interrupted(self.number, sentence(self.number, self.kept or NOTHING))


class _State:
    number: int | None = None  # of the first signal
    held = 0
    at_once = 0
    handlers: dict[int, SignalHandler] | None = None  # those before ours; None where ours are not there
    hook: Callable[[Any], object] | None = None
    terminals: tuple[int, ...] = ()  # of the standard streams


def sentence(number: int, kept: str) -> str:
    """`interrupted (SIGINT): ` and what is kept."""
    return f"{WORDS.get(number, f'signal {number}')}: {kept}"


def asked() -> int | None:
    """The signal that asked to stop, or None."""
    return _State.number


def wanted() -> bool:
    """Whether to stop here: somebody asked, and nothing is held."""
    return asked() is not None and not _State.held


def poll() -> None:
    """Stop here if asked to.

    Raises:
        Stopped: a signal came.
    """
    number = asked()
    if number is not None and not _State.held:
        raise Stopped(number)


def forget() -> None:
    """The signal was answered, as an answer that was cut short is; the next one is a first one again."""
    _State.number = None


@contextmanager
def held() -> Iterator[None]:
    """Nothing within it is cut by a first signal: `poll` lets it pass, and an import too."""
    with _counted("held"):
        yield


@contextmanager
def at_once() -> Iterator[None]:
    """Work that never polls and leaves nothing behind: a signal raises `Stopped` where it stands, unless it is held."""
    poll()
    with _counted("at_once"):
        yield


@contextmanager
def listening(kept: str | Callable[[], str] = NOTHING) -> Iterator[None]:
    """While it is open, signals ask to stop. One within another only says what is kept.

    Outside the main thread, which alone may have handlers, signals stay what they are to the program.

    Args:
        kept: what is left and what to type next, unless somebody within has told it; called when it is over.

    Raises:
        Interrupted: somebody asked to stop; of one within another, `Stopped`.
    """
    outermost = listen()
    try:
        yield
    except BaseException as error:
        stopped = behind(error)
        if stopped is None:
            raise
        if stopped.kept is None:
            stopped.kept = kept if isinstance(kept, str) else kept()
        if _State.handlers is None or outermost:
            raise stopped.error() from None
        raise stopped from None
    finally:
        if outermost:
            release()


def listen() -> bool:
    """Put the handlers in place; False where they are, or where this is not the main thread.

    A SIGHUP that is ignored stays so, as `nohup` means it.
    """
    if _State.handlers is not None or threading.current_thread() is not threading.main_thread():
        return False
    _State.number = None
    _State.handlers = {}
    _State.hook, sys.unraisablehook = sys.unraisablehook, _unraisable
    _State.terminals = tuple(stream for stream in (0, 1, 2) if os.isatty(stream))
    for number in SIGNALS:
        if number == getattr(signal, "SIGHUP", None) and signal.getsignal(number) is signal.SIG_IGN:
            continue
        _State.handlers[number] = signal.signal(number, _handle)
    return True


def release() -> None:
    """Put back the handlers that were there before."""
    for number, handler in (_State.handlers or {}).items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not of Python
    if _State.hook is not None:
        sys.unraisablehook = _State.hook
    _State.handlers = _State.hook = _State.number = None


def give_up() -> None:
    """Leave signals to the system, which ends the process: for its last moments, in which nothing is written."""
    for number in _State.handlers or {}:
        signal.signal(number, signal.SIG_DFL)


def behind(error: BaseException) -> Stopped | None:
    """The stop that an error is, or that it came of, as the import that a signal cut may end in an error of its own."""
    if isinstance(error, Stopped):
        return error
    if getattr(error, "told", None) is False:  # an `Interrupted` that does not know what is kept
        return Stopped(asked() or signal.SIGINT)
    if asked() is None or hasattr(error, "exit_code"):  # a failure that was said on purpose is told as it is
        return None
    link = error.__cause__ or error.__context__
    while link is not None and not isinstance(link, Stopped):
        link = link.__cause__ or link.__context__
    return link


@contextmanager
def _counted(name: str) -> Iterator[None]:
    """Threads beside the main one, to which no signal comes, change nothing."""
    mine = threading.current_thread() is threading.main_thread()
    before = getattr(_State, name)
    if mine:
        setattr(_State, name, before + 1)
    try:
        yield
    finally:
        if mine:
            setattr(_State, name, before)


def _handle(number: int, frame: FrameType | None) -> None:
    if _State.number is not None:
        give_up()
        raise Stopped(_State.number)
    _State.number = number
    _leave_lost_terminals()
    if not _State.held and (_State.at_once or _imports(frame)):
        raise Stopped(number)


def _leave_lost_terminals() -> None:
    """What is told to a terminal that is gone goes nowhere; else the error would come before the checkpoint."""
    lost = [stream for stream in _State.terminals if not os.isatty(stream)]
    if lost:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in lost:
            os.dup2(nowhere, stream)
        os.close(nowhere)


def _imports(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith(IMPORT):
            return True
        frame = frame.f_back
    return False


def _unraisable(what: Any) -> None:
    """A stop raised where nothing can be, as in the end of an object, is not shown: the flag stays, and is polled."""
    if not isinstance(what.exc_value, Stopped) and _State.hook is not None:
        _State.hook(what)
