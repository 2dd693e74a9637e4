"""What the exit codes of the command mean."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from ..errors import ConfigurationError, InputError, MissingDependencyError, ModelFileError


class ExitCode(IntEnum):
    """Exit codes of ``ptychopinn-torch``; those above 128 are what a shell reports of a process ended by a signal."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    INPUT = 3
    MISSING = 4
    INTERRUPTED = 130
    TERMINATED = 143


MEANINGS: Final = {
    ExitCode.DONE: 'done',
    ExitCode.FAILED: 'failed: the message says why (training, disk, Ptychodus; an unhealthy installation)',
    ExitCode.USAGE: 'wrong usage: an option or a setting cannot be used',
    ExitCode.INPUT: 'input refused: a scan, a training file, a product or a model file cannot be used',
    ExitCode.MISSING: 'a package is missing or broken: the message has the command that installs it',
    ExitCode.INTERRUPTED: 'interrupted by Ctrl-C: the message says what was kept and where',
    ExitCode.TERMINATED: 'ended by SIGTERM, as by a scheduler: the message says what was kept and where',
}
"""One sentence for each code, as ``--help`` prints it."""


def exit_code_of(error: Exception) -> ExitCode:
    """The code for an error that was raised on purpose, or by the system (:class:`OSError`)."""
    if isinstance(error, ConfigurationError):
        return ExitCode.USAGE
    if isinstance(error, InputError | ModelFileError):
        return ExitCode.INPUT
    if isinstance(error, MissingDependencyError):
        return ExitCode.MISSING
    return ExitCode.FAILED
