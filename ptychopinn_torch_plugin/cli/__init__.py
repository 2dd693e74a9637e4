"""The ``ptychopinn-torch`` command: a door to the same engine that Ptychodus uses, and the doctor.

Every command prints its result on stdout, for people or (``--json``) as exactly one JSON document; everything else goes
to stderr. What the exit codes mean stands in :mod:`~ptychopinn_torch_plugin.cli.codes` and in ``--help``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..errors import PtychoPINNError
from .codes import ExitCode, exit_code_of
from .parser import PROGRAM, build_parser
from .result import Outcome, failure, report
from .terminal import logging_to_stderr, stdout_for_results

__all__ = ['main']


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code (:class:`~ptychopinn_torch_plugin.cli.codes.ExitCode`).

    Args:
        arguments: words of the command line without the program's name; None takes those of the process.

    Raises:
        SystemExit: the words do not parse (code 2), or help or version were asked for (code 0).
    """
    parsed = build_parser().parse_args(arguments)
    with stdout_for_results() as stdout, logging_to_stderr(quiet=parsed.quiet):
        outcome = _carry_out(parsed)
        report(outcome, parsed.command, as_json=parsed.json, stdout=stdout)
    return int(outcome.code)


def _carry_out(parsed: argparse.Namespace) -> Outcome:
    try:
        outcome: Outcome = parsed.run(parsed)
    except (PtychoPINNError, OSError) as error:
        print(f'{PROGRAM}: {error}', file=sys.stderr)
        return failure(type(error).__name__, str(error), exit_code_of(error))
    except KeyboardInterrupt:
        message = 'Interrupted before there was anything to keep.'
        print(f'{PROGRAM}: {message}', file=sys.stderr)
        return failure('KeyboardInterrupt', message, ExitCode.INTERRUPTED)
    return outcome
