"""The report of a run: one HTML file that needs nothing else, its data, the comparison of several, and ``status.json``.

Importing this package imports neither torch nor Ptychodus nor matplotlib nor Jinja.
"""

from __future__ import annotations

from ..metrics.run import Run
from .compare import read_report, write_comparison
from .output import (
    REPORT_FILE,
    TRAINING_REPORT_FILE,
    collected_warnings,
    metrics_folder,
    report_path,
    write_report,
    write_training_report,
)
from .status import STATUS_FILE, StatusFile
from .training import TrainingRun

__all__ = [
    'REPORT_FILE',
    'STATUS_FILE',
    'TRAINING_REPORT_FILE',
    'Run',
    'StatusFile',
    'TrainingRun',
    'collected_warnings',
    'metrics_folder',
    'read_report',
    'report_path',
    'write_comparison',
    'write_report',
    'write_training_report',
]
