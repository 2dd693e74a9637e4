"""Write the report of a run. A report that cannot be written never ends a run: the log says why it is missing."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final

from ..dependencies import missing
from ..errors import OutputError
from ..metrics.output import metrics_files
from ..metrics.run import Run
from ..storage.atomic import write_atomically
from ..types import Reconstruction
from .page import render_report
from .training import TrainingRun, render_training

REPORT_FILE: Final = 'report.html'
TRAINING_REPORT_FILE: Final = 'training.html'
"""The report of a training has a name of its own: product and model may be in one folder."""
MAX_REPORTS: Final = 100
"""Reports that are kept in the default folder of the user; the oldest are removed, with their metrics."""

_PACKAGE: Final = __package__.partition('.')[0]
_NAMED: Final = re.compile(r'\d{4}-\d{2}-\d{2}_\d{6}_[\w.-]*\.html')

logger = logging.getLogger(__name__)


def write_report(path: Path, reconstruction: Reconstruction, run: Run) -> bool:
    """Write the report of a reconstruction as one HTML file that needs nothing else.

    Args:
        path: the file, ``.html``.
        reconstruction: the result of the run.
        run: what was run.

    Returns:
        Whether it is written; if not, a warning in the log says why.
    """
    return _write(path, lambda: render_report(reconstruction, run))


def write_training_report(path: Path, run: TrainingRun) -> bool:
    """Write the report of a training, as :func:`write_report` does."""
    return _write(path, lambda: render_training(run))


def _write(path: Path, render: Callable[[], str]) -> bool:
    try:
        write_atomically(path, render().encode())
    except ImportError as error:
        logger.warning('There is no report. %s', missing(error))
    except (OutputError, MemoryError) as error:
        logger.warning('There is no report: %s', str(error) or 'there is not enough memory.')
    except Exception as error:  # the result is complete and must not be lost by a fault in its report
        logger.warning('There is no report, because of a defect of this package (%s: %s).', type(error).__name__, error)
        logger.debug('The report failed.', exc_info=True)
    else:
        logger.info('The report is %s.', path)
        return True
    return False


def report_path(folder: str, scan_name: str, started: datetime) -> Path:
    """Return the file for the report of a run that has no output folder, such as one in the window.

    Args:
        folder: the folder that the user has chosen; empty takes the folder ``reports`` of the user's data, in which the
            newest ``MAX_REPORTS`` reports are kept.
        scan_name: name of the scan, part of the name of the file.
        started: time at which the run began, part of the name of the file.
    """
    name = re.sub(r'[^\w.-]+', '-', scan_name)[:60].strip('-.')
    file = f'{started:%Y-%m-%d_%H%M%S}_{name or "scan"}.html'
    if folder:
        return Path(folder).expanduser() / file
    from platformdirs import user_data_path

    reports = user_data_path(_PACKAGE, appauthor=False) / 'reports'
    _remove_oldest(reports)
    return reports / file


def metrics_folder(report: Path) -> Path:
    """Return the folder for the metrics of a run that has no output folder: beside its report, of the same name."""
    return report.with_suffix('')


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Collect the warnings of this package's log in a list."""
    handler = _WarningList()
    package = logging.getLogger(_PACKAGE)
    package.addHandler(handler)
    try:
        yield handler.lines
    finally:
        package.removeHandler(handler)


class _WarningList(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _remove_oldest(folder: Path) -> None:
    """Remove the oldest reports of the default folder; their names begin with their time."""
    try:
        found = sorted(file for file in folder.glob('*.html') if _NAMED.fullmatch(file.name))
        for file in found[: max(0, len(found) + 1 - MAX_REPORTS)]:
            for metrics in metrics_files(metrics_folder(file)):
                metrics.unlink(missing_ok=True)
            for emptied in (metrics_files(metrics_folder(file))[0].parent, metrics_folder(file)):
                if emptied.is_dir():
                    emptied.rmdir()
            file.unlink(missing_ok=True)
    except OSError as error:
        logger.debug('Old reports in %s cannot be removed: %s', folder, error)
