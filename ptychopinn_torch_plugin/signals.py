"""The signals that end a run in order; one list for the command line, batch mode, scripts and all their processes."""

from __future__ import annotations

import signal


def existing_signals(*names: str) -> frozenset[signal.Signals]:
    """Return the signals of these names that the system has."""
    return frozenset(signal.Signals[name] for name in names if name in signal.Signals.__members__)


RUN_STOP_SIGNALS = existing_signals('SIGINT', 'SIGTERM', 'SIGHUP', 'SIGXCPU', 'SIGUSR1', 'SIGUSR2')
"""End a run in order in the process that the user started: Ctrl-C, ``kill`` and batch systems, a closed terminal, the
limit of processor time, and what ``sbatch --signal`` is usually set to send."""


def ignore_stop_signals(*but: signal.Signals) -> None:
    """Ignore the stop signals but these in a helper process: the process that the user started gets them too."""
    for number in RUN_STOP_SIGNALS.difference(but):
        signal.signal(number, signal.SIG_IGN)
