"""The terminal's side of a run: log and progress bar on stderr, and the signals that end it in order."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from types import FrameType
from typing import Any, TextIO

from tqdm import tqdm

from ..observer import SilentObserver
from .codes import ExitCode

_PACKAGE = __package__.partition('.')[0]


class _BarHandler(logging.Handler):
    """Writes records to stderr above a bar that may be there."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


@contextmanager
def logging_to_stderr(*, quiet: bool) -> Iterator[None]:
    """Send this package's log (warnings and errors only if ``quiet``) and warnings of others to stderr."""
    handler = _BarHandler()
    loggers = [logging.getLogger(name) for name in (_PACKAGE, 'lightning.pytorch')]
    before = [logger.level for logger in loggers]
    logging.getLogger().addHandler(handler)
    loggers[0].setLevel(logging.WARNING if quiet else logging.INFO)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


@contextmanager
def stdout_for_results() -> Iterator[TextIO]:
    """Give stdout away for the result alone: whatever else is printed meanwhile goes to stderr."""
    stdout = sys.stdout
    with redirect_stdout(sys.stderr):
        yield stdout


class BarObserver(SilentObserver):
    """Shows progress and the latest losses on a bar, and stops the run when a signal came."""

    def __init__(self, bar: Any) -> None:  # noqa: ANN401 - tqdm has no types
        self._bar = bar
        self._signal: signal.Signals | None = None

    @property
    def interruption(self) -> str | None:
        """Name of the signal that ended the run early, for example ``SIGINT``; None if none did."""
        return None if self._signal is None else self._signal.name

    @property
    def code(self) -> ExitCode:
        """Exit code of the run: done, or ended by a signal."""
        if self._signal is None:
            return ExitCode.DONE
        return ExitCode(128 + self._signal)

    def stop(self, number: int) -> None:
        """Ask the run to end; asked a second time, end the process as the signal would have."""
        if self._signal is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._signal = signal.Signals(number)

    def on_progress(self, done: int, goal: int) -> None:
        """Move the bar."""
        self._bar.total = goal
        self._bar.update(done - self._bar.n)

    def on_losses(self, epoch: int, training: float, validation: float | None) -> None:
        """Show the losses of the epoch behind the bar."""
        losses = {} if validation is None else {'held_out': f'{validation:.4f}'}
        self._bar.set_postfix(epoch=epoch, loss=f'{training:.4f}', **losses)

    def should_stop(self) -> bool:
        """True once a signal came."""
        return self._signal is not None


@contextmanager
def listening(title: str, *, quiet: bool) -> Iterator[BarObserver]:
    """An observer for the terminal; SIGINT and SIGTERM end the run after the current batch, with what it has.

    The bar is drawn on stderr where that is a terminal, and unless ``quiet``.
    """
    with tqdm(desc=title, unit='step', total=1, file=sys.stderr, disable=True if quiet else None) as bar:
        observer = BarObserver(bar)

        def stop(number: int, _frame: FrameType | None) -> None:
            observer.stop(number)

        before: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {
            number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield observer
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
