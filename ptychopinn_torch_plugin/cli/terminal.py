"""Log and progress bar of a run on stderr."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from ..config import Config
from ..estimate import Work
from ..observer import SilentObserver
from ..run_progress import RunProgress
from .signals import StopSignals

_FORMAT = '{desc} |{bar}| {percentage:3.0f} %{postfix}'
_INTERVAL_S = 0.1
"""Shortest time between two drawings for progress alone."""
_PACKAGE = __package__.partition('.')[0]


class _LogHandler(logging.Handler):
    """Writes records to stderr, in place of the progress bar if one is drawn; the next progress draws it anew."""

    def __init__(self) -> None:
        super().__init__()
        self.addFilter(lambda record: not getattr(record, 'is_result', False))  # the result is printed on stdout
        self.bar: Any = None

    def emit(self, record: logging.LogRecord) -> None:
        if self.bar is not None:
            self.bar.clear()
        sys.stderr.write(self.format(record) + '\n')
        sys.stderr.flush()


_handler = _LogHandler()


@contextmanager
def logging_to_stderr(*, quiet: bool) -> Iterator[None]:
    """Send this package's log (warnings and errors only if ``quiet``) and warnings of others to stderr."""
    loggers = [logging.getLogger(name) for name in (_PACKAGE, 'lightning.pytorch')]
    before = [logger.level for logger in loggers]
    logging.getLogger().addHandler(_handler)
    loggers[0].setLevel(logging.WARNING if quiet else logging.INFO)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(_handler)
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


class BarObserver(SilentObserver):
    """Shows stage, epoch, time left and losses on a bar, and asks the run to end once a signal came."""

    def __init__(self, bar: Any, title: str, signals: StopSignals) -> None:  # noqa: ANN401 - tqdm has no types
        self._bar = bar
        self._title = title
        self._signals = signals
        self._progress = RunProgress()
        self._next = 0.0

    def plan(self, kind: Work, config: Config) -> None:
        """Receive what is run, before its first stage."""
        self._progress.begin(kind, config)

    def on_stage(self, stage: str) -> None:
        """Show the stage that begins."""
        self._progress.stage = stage
        self._draw()

    def on_progress(self, done: int, goal: int) -> None:
        """Move the bar."""
        self._progress.update(done, goal)
        self._bar.n, self._bar.total = done, goal
        if time.monotonic() >= self._next or done >= goal:
            self._draw()

    def on_losses(self, epoch: int, training: float, validation: float | None) -> None:
        """Show the losses of the epoch behind the bar."""
        self._progress.add_losses(epoch, training, validation)
        losses = {} if validation is None else {'validation_loss': f'{validation:.4f}'}
        self._bar.set_postfix(loss=f'{training:.4f}', **losses, refresh=False)

    def should_stop(self) -> bool:
        """Return True once a signal came."""
        return self._signals.received is not None

    def _draw(self) -> None:
        if self._bar.disable:
            return
        self._next = time.monotonic() + _INTERVAL_S
        self._bar.set_description_str(self._progress.text() if self._progress.kind else self._title, refresh=False)
        self._bar.refresh()


@contextmanager
def progress_bar(title: str, signals: StopSignals, *, quiet: bool) -> Iterator[BarObserver]:
    """Yield the observer of a run that draws on stderr, where that is a terminal, unless ``quiet``."""
    shown = {'desc': title, 'total': 1, 'bar_format': _FORMAT, 'dynamic_ncols': True, 'leave': False}
    with tqdm(**shown, file=sys.stderr, disable=True if quiet else None) as bar:
        _handler.bar = None if bar.disable else bar
        try:
            yield BarObserver(bar, title, signals)
        finally:
            _handler.bar = None
