"""Stop a run in batch mode in order when the user or a scheduler sends a signal.

Ptychodus 1.7 sets no signal handlers. In batch mode Ctrl-C ends the wait of its main thread while the run goes on in a
background thread, and SIGTERM ends the process at once. For the time of one run, the handlers here request a stop of
the run instead.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ..signals import RUN_STOP_SIGNALS

_DEFAULT_HANDLERS = (signal.SIG_DFL, signal.default_int_handler)

Handler = Callable[[int, FrameType | None], Any] | int | None


class RunInterruptedError(KeyboardInterrupt):
    """A run that a signal has stopped has ended in order; raised in the thread that waited for it."""


class StopRequest:
    """The stop signal that came during one run, if any; set by a signal handler, read by any thread."""

    def __init__(self) -> None:
        self._signal: signal.Signals | None = None

    def is_made(self) -> bool:
        """Return whether the run shall end early."""
        return self._signal is not None

    def error(self) -> RunInterruptedError:
        """Return the exception that reports the end of the run."""
        name = 'A signal' if self._signal is None else self._signal.name
        return RunInterruptedError(f'{name} has stopped the run; the log above says what was kept.')

    def on_stop_signal(self, number: int, _frame: FrameType | None) -> None:
        """Request the stop; a second signal ends the process as it would without this handler."""
        if self._signal is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._signal = signal.Signals(number)


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn the signals that would end the process into a request to stop, until the exit.

    The signals are those of ``RUN_STOP_SIGNALS``. One that is ignored or has a handler already is left as it is; so are
    all signals in a thread that is not the main thread.

    Raises:
        RunInterruptedError: at the exit, after the handlers were restored, if a stop was requested.
    """
    request = StopRequest()
    before: dict[signal.Signals, Handler] = {}
    if threading.current_thread() is threading.main_thread():
        for number in RUN_STOP_SIGNALS:
            if signal.getsignal(number) in _DEFAULT_HANDLERS:
                before[number] = signal.signal(number, request.on_stop_signal)
    try:
        yield request
    except Exception as error:
        if request.is_made():
            raise request.error() from error
        raise
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
    if request.is_made():
        raise request.error()
