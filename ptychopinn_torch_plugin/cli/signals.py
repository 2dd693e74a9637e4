"""The signals that ask the command to end.

After the first signal, training and reconstruction end with the current batch and keep what they have, files that are
being written are finished, and everything else ends at once. The second signal ends these at once, too; what is on disk
is still reported. The third one ends the process without a report.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from ..signals import RUN_STOP_SIGNALS

_Handler = Callable[[int, FrameType | None], Any] | int | None


class Interrupted(BaseException):
    """Raised where a signal came; no handler of errors catches it by accident."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.name = signal.Signals(number).name
        """For example ``'SIGTERM'``."""
        self.exit_code = 128 + number


class StopSignals:
    """Receives ``RUN_STOP_SIGNALS`` while it is entered (in the main thread; elsewhere it receives none).

    Signals that the process ignores stay ignored (``nohup``; SIGINT of a background job of a script).
    """

    def __init__(self) -> None:
        self._before: dict[int, _Handler] = {}
        self._first: int | None = None
        self._count = 0
        self._is_interrupting = False

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in RUN_STOP_SIGNALS:
                handler = signal.getsignal(number)
                if handler not in (signal.SIG_IGN, None):  # None: set by a library, which needs it
                    self._before[number] = handler
                    signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def received(self) -> str | None:
        """Name of the first signal that came, for example ``'SIGINT'``; None if none did."""
        return None if self._first is None else signal.Signals(self._first).name

    @property
    def exit_code(self) -> int:
        """128 and the number of the first signal; 0 if none came."""
        return 0 if self._first is None else 128 + self._first

    def check(self) -> None:
        """Raise :class:`Interrupted` if a signal has come."""
        if self._first is not None:
            raise Interrupted(self._first)

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Have the first signal raise :class:`Interrupted` inside, at any instruction; it is raised now if one came."""
        with self._mode(is_interrupting=True):
            self.check()
            yield

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Only record the first signal inside; :attr:`received` and :meth:`check` tell of it."""
        with self._mode(is_interrupting=False):
            yield

    @contextmanager
    def _mode(self, *, is_interrupting: bool) -> Iterator[None]:
        before, self._is_interrupting = self._is_interrupting, is_interrupting
        try:
            yield
        finally:
            self._is_interrupting = before

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        self._count += 1
        if self._first is None:
            self._first = number
        if self._count == 1 and not self._is_interrupting:
            return
        if self._count <= 2:
            self._is_interrupting = False
            raise Interrupted(number)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
