"""What each signal does to the worker, from its first instruction on.

The parent starts the worker with these signals blocked, and the worker unblocks them once its handlers are set. So none
of them can end the process while Python and this package are being imported; one that came early is delivered then.
"""

from __future__ import annotations

import faulthandler
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType

from ..signals import existing_signals
from .channel import StopFlag

STOP_SIGNALS = existing_signals('SIGTERM', 'SIGHUP', 'SIGXCPU')
"""Request an orderly end of the worker: a scheduler's warning, a closed terminal, the limit of processor time."""

IGNORED_SIGNALS = existing_signals('SIGINT', 'SIGUSR2')
"""Do nothing: the parent, which gets them too when they are sent to all processes of a job, requests the stop."""

STACK_SIGNALS = existing_signals('SIGUSR1')
"""Write the stacks of all threads to the error output and do nothing else; the parent sends it to a worker that makes
no progress."""

_HANDLED = STOP_SIGNALS | IGNORED_SIGNALS | STACK_SIGNALS


@contextmanager
def blocked_signals() -> Iterator[None]:
    """Block the worker's signals in this thread; a process started meanwhile begins with them blocked."""
    if not hasattr(signal, 'pthread_sigmask'):
        yield
        return
    # Started by multiprocessing together with the first worker; doing so unblocks some signals.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def set_handlers(stop: StopFlag) -> None:
    """Set the handlers of the worker, which set ``stop``, and unblock its signals.

    A stop signal that the parent ignores (SIGHUP under ``nohup``) stays ignored.
    """

    def request_stop(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in STOP_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, request_stop)
    for number in IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    for number in STACK_SIGNALS:
        faulthandler.register(number, file=2, all_threads=True)
    if hasattr(signal, 'pthread_sigmask'):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
