"""Log and progress bar of a run on stderr."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from ..observer import SilentObserver
from .signals import StopSignals

_FORMAT = '{desc}: {percentage:3.0f} % |{bar}| {elapsed}, {remaining} left{postfix}'
_PACKAGE = __package__.partition('.')[0]


class _BarHandler(logging.Handler):
    """Writes records to stderr above the progress bar, if one is drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.addFilter(lambda record: not getattr(record, 'is_result', False))  # the result is printed on stdout

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


class BarObserver(SilentObserver):
    """Shows progress and the latest losses on a bar, and asks the run to end once a signal came."""

    def __init__(self, bar: Any, signals: StopSignals) -> None:  # noqa: ANN401 - tqdm has no types
        self._bar = bar
        self._signals = signals

    def on_progress(self, done: int, goal: int) -> None:
        """Move the bar."""
        self._bar.total = goal
        self._bar.update(done - self._bar.n)

    def on_losses(self, epoch: int, training: float, validation: float | None) -> None:
        """Show the losses of the epoch behind the bar."""
        losses = {} if validation is None else {'validation_loss': f'{validation:.4f}'}
        self._bar.set_postfix(epoch=epoch, loss=f'{training:.4f}', **losses)

    def should_stop(self) -> bool:
        """Return True once a signal came."""
        return self._signals.received is not None


@contextmanager
def progress_bar(title: str, signals: StopSignals, *, quiet: bool) -> Iterator[BarObserver]:
    """Yield the observer of a run that draws on stderr, where that is a terminal, unless ``quiet``."""
    shown = {'desc': title, 'total': 1, 'bar_format': _FORMAT, 'dynamic_ncols': True, 'leave': False}
    with tqdm(**shown, file=sys.stderr, disable=True if quiet else None) as bar:
        yield BarObserver(bar, signals)
