"""What the exit codes of the command mean."""

from __future__ import annotations

import signal
from enum import IntEnum
from typing import Final

from ..errors import ConfigurationError, InputError, MissingDependencyError, ModelFileError


class ExitCode(IntEnum):
    """Exit codes of ``ptychopinn-torch``; 128 + n is what shells report of a process that signal n has ended."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    INPUT = 3
    MISSING = 4
    HANGUP = 129
    INTERRUPTED = 130
    # Not the same number on every system.
    USER_SIGNAL_1 = 128 + getattr(signal, 'SIGUSR1', 10)
    USER_SIGNAL_2 = 128 + getattr(signal, 'SIGUSR2', 12)
    TERMINATED = 143
    PROCESSOR_TIME = 128 + getattr(signal, 'SIGXCPU', 24)


MEANINGS: Final = {
    ExitCode.DONE: 'done',
    ExitCode.FAILED: 'failed: the message gives the reason (training, memory, disk, stdout, Ptychodus, installation)',
    ExitCode.USAGE: 'wrong usage: an option or a setting cannot be used',
    ExitCode.INPUT: 'input refused: a scan, a training file, a product or a model file cannot be used',
    ExitCode.MISSING: 'a package is missing or broken: the message has the command that installs it',
    ExitCode.HANGUP: 'ended by SIGHUP (the terminal was closed): the message names what was written',
    ExitCode.INTERRUPTED: 'ended by SIGINT (Ctrl-C): the message names what was written',
    ExitCode.USER_SIGNAL_1: 'ended by SIGUSR1 (sbatch --signal): the message names what was written',
    ExitCode.USER_SIGNAL_2: 'ended by SIGUSR2 (sbatch --signal): the message names what was written',
    ExitCode.TERMINATED: 'ended by SIGTERM (kill, a batch system): the message names what was written',
    ExitCode.PROCESSOR_TIME: 'ended by SIGXCPU (limit of processor time): the message names what was written',
}
"""One sentence for each code, as ``--help`` prints it."""


def exit_code_of(error: Exception) -> ExitCode:
    """Return the code for an error that was raised on purpose, or by the system (:class:`OSError`)."""
    if isinstance(error, ConfigurationError):
        return ExitCode.USAGE
    if isinstance(error, InputError | ModelFileError):
        return ExitCode.INPUT
    if isinstance(error, MissingDependencyError):
        return ExitCode.MISSING
    return ExitCode.FAILED
