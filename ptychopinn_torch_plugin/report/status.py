"""``status.json``: the state of a run for pipelines, replaced as a whole at most once a second.

``specs/status.schema.json`` describes it. A status that cannot be written never ends a run.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from ..config import Config
from ..errors import OutputError
from ..estimate import Work
from ..observer import Observer
from ..run_progress import RunProgress
from ..storage.atomic import write_atomically
from ..types import LossRecord, Reconstruction

STATUS_FILE: Final = 'status.json'
FORMAT_VERSION: Final = 1
INTERVAL_S: Final = 1.0
"""Shortest time between two versions of the file."""
MAX_LOSSES: Final = 1000
"""Epochs whose losses the file holds: the newest ones."""

State = Literal['running', 'done', 'stopped', 'failed']

_PACKAGE: Final = __package__.partition('.')[0]

logger = logging.getLogger(__name__)


class StatusFile:
    """Writes ``status.json`` while it is entered; :meth:`observer` returns what the engine reports to.

    Args:
        file: the file; None writes none.
        command: the command that runs, for example ``'refine'``.
        clock: returns the time in seconds, for its differences.
    """

    def __init__(self, file: Path | None, command: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = file
        self._clock = clock
        self._begun = clock()
        self._next = self._begun
        self._losses: deque[LossRecord] = deque(maxlen=MAX_LOSSES)
        self._progress = RunProgress(clock)
        self._document: dict[str, Any] = {
            'format_version': FORMAT_VERSION,
            'command': command,
            'state': 'running',
            'stage': 'starting',
            'message': '',
            'files': [],
            'error': None,
            'process': os.getpid(),
            'computer': platform.node(),
            'started': _now(),
        }
        self._handler = _LastMessage(self._keep_message)

    def __enter__(self) -> StatusFile:
        logging.getLogger(_PACKAGE).addHandler(self._handler)
        self._write()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        logging.getLogger(_PACKAGE).removeHandler(self._handler)
        if error is not None:
            is_failure = isinstance(error, Exception)
            message = str(error) or type(error).__name__
            self._document['error'] = {'type': type(error).__name__, 'message': message} if is_failure else None
            self._end('failed' if is_failure else 'stopped')
        elif self._document['state'] == 'running':
            self._end('done')

    def observer(self, observer: Observer) -> Observer:
        """Return an observer that reports to ``observer`` and to the file."""
        return _StatusObserver(self, observer)

    def plan(self, kind: Work, config: Config) -> None:
        """Receive what is run, before its first stage; the file then holds the number of the epoch."""
        self._progress.begin(kind, config)

    def begin(self, stage: str) -> None:
        """Begin a stage, for example ``'refining'``."""
        self._document['stage'] = self._progress.stage = stage
        self._write()

    def stage(self, stage: str) -> None:
        """Keep the stage that the engine begins: stages of a training can be shorter than a second."""
        self._document['stage'] = self._progress.stage = stage
        self._write_if_due()

    def finish(self, files: Sequence[Path], *, is_stopped: bool) -> None:
        """Write the last version: the files that the run has written, and whether it was stopped early."""
        self._document['files'] = [str(file) for file in files]
        self._end('stopped' if is_stopped else 'done')

    def progress(self, done: int, goal: int) -> None:
        """Keep the progress."""
        self._progress.update(done, goal)
        self._write_if_due()

    def losses(self, record: LossRecord) -> None:
        """Keep the losses of an epoch."""
        self._losses.append(record)
        self._progress.add_losses(record.epoch, record.training, record.validation)
        self._write_if_due()

    def _keep_message(self, text: str) -> None:
        self._document['message'] = text

    def _end(self, state: State) -> None:
        if state == 'done':
            self._progress.finish()
        self._document['state'] = self._document['stage'] = state
        self._write()

    def _write_if_due(self) -> None:
        if self._clock() >= self._next:
            self._write()

    def _write(self) -> None:
        if self._file is None:
            return
        now = self._clock()
        self._next = now + INTERVAL_S
        progress = self._progress
        left = progress.seconds_left()
        is_running = self._document['state'] == 'running'
        if not is_running:
            left = 0.0 if self._document['state'] == 'done' else None
        document = self._document | {
            'fraction': round(progress.fraction, 4),
            'epoch': progress.epoch if is_running else None,
            'epochs': progress.epochs or None,
            'seconds_left': None if left is None else round(left, 1),
            'seconds': round(now - self._begun, 1),
            'updated': _now(),
            'losses': [[record.epoch, _known(record.training), _known(record.validation)] for record in self._losses],
        }
        try:
            write_atomically(self._file, json.dumps(document, indent=1).encode() + b'\n')
        except OutputError as error:
            self._file = None  # one warning is enough
            logger.warning('The state of the run is not written any more: %s', error)


class _StatusObserver:
    """Reports to the file and to another observer."""

    def __init__(self, status: StatusFile, observer: Observer) -> None:
        self._status = status
        self._observer = observer

    def on_stage(self, stage: str) -> None:
        self._status.stage(stage)
        self._observer.on_stage(stage)

    def on_progress(self, done: int, goal: int) -> None:
        self._status.progress(done, goal)
        self._observer.on_progress(done, goal)

    def on_losses(self, epoch: int, training: float, validation: float | None) -> None:
        self._status.losses(LossRecord(epoch, training, validation))
        self._observer.on_losses(epoch, training, validation)

    def on_preview(self, object_array: npt.NDArray[np.complex64]) -> None:
        self._observer.on_preview(object_array)

    def on_result(self, reconstruction: Reconstruction) -> None:
        self._observer.on_result(reconstruction)

    def should_stop(self) -> bool:
        return self._observer.should_stop()


class _LastMessage(logging.Handler):
    def __init__(self, keep: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self._keep = keep

    def emit(self, record: logging.LogRecord) -> None:
        self._keep(record.getMessage())


def _known(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec='seconds')
