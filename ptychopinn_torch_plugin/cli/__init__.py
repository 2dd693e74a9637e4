"""The ``ptychopinn-torch`` command: the engines that Ptychodus uses, without a window.

Every command prints its result on stdout, for people or (``--json``) as exactly one JSON document; everything else goes
to stderr. The meanings of the exit codes are in :mod:`~ptychopinn_torch_plugin.cli.codes` and in ``--help``.

This module imports only what takes and records signals: a Ctrl-C while the rest is imported ends the command with a
sentence, not with a traceback of the import.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from .environment import home_folder, let_threads_wait, working_folder
from .signals import Interrupted, StopSignals
from .streams import prepared_streams

__all__ = ['main']


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code (:class:`~ptychopinn_torch_plugin.cli.codes.ExitCode`).

    Args:
        arguments: words of the command line without the program's name; None takes those of the process.

    Raises:
        SystemExit: the words do not parse (code 2), or help or version were asked for (code 0).
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    let_threads_wait()
    with prepared_streams() as stdout, StopSignals() as signals, home_folder():
        folder = working_folder()
        try:
            from .program import run_command

            return run_command(words, signals, stdout, folder)
        except Interrupted as end:
            # A second signal, while the command was imported or its result reported.
            print(f'ptychopinn-torch: ended by {end.name}.', file=sys.stderr)
            return end.exit_code
        except MemoryError as error:
            print(f'ptychopinn-torch: there is not enough memory to start ({error}).', file=sys.stderr)
            return 1
