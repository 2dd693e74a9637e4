"""One command from its words to its exit code; every way out of it is reported here."""

from __future__ import annotations

import argparse
import io
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TextIO

from ..errors import OutputError, PtychoPINNError
from ..limits import says_out_of_memory
from ..storage.written_files import WrittenFiles
from .codes import ExitCode, exit_code_of
from .context import CommandContext
from .names import PROGRAM
from .parser import build_parser
from .result import CommandResult, failure, json_of
from .signals import Interrupted, StopSignals
from .streams import discard
from .terminal import logging_to_stderr


def run_command(words: Sequence[str], signals: StopSignals, stdout: TextIO | None, working_folder: Path | None) -> int:
    """Carry out the command that ``words`` ask for, print its result on ``stdout`` and return the exit code.

    Args:
        words: words of the command line without the program's name.
        signals: the signals that ask the command to end.
        stdout: None where it is closed.
        working_folder: None where it was removed.

    Raises:
        SystemExit: the words do not parse (code 2), or help or version were asked for (code 0).
    """
    if '_ARGCOMPLETE' in os.environ:
        _complete()
    parsed = _parse(words, stdout)
    context = CommandContext(signals, WrittenFiles())
    with logging_to_stderr(quiet=parsed.quiet):
        result = _carry_out(parsed, context, working_folder)
        return _report(result, parsed, context.written, stdout)


def _complete() -> None:
    """Print the completions of the words that the shell passes on, and end the process."""
    import argcomplete

    argcomplete.autocomplete(build_parser())


def _parse(words: Sequence[str], stdout: TextIO | None) -> argparse.Namespace:
    text = io.StringIO()
    try:
        with redirect_stdout(text):
            parsed: argparse.Namespace = build_parser().parse_args(words)
            return parsed
    except SystemExit:
        code = _print(text.getvalue(), stdout)
        if code != ExitCode.DONE:
            raise SystemExit(code) from None
        raise


def _carry_out(parsed: argparse.Namespace, context: CommandContext, working_folder: Path | None) -> CommandResult:
    """Run the command; whatever ends it becomes a result that says what is on disk."""
    try:
        with context.signals.interrupting():
            _make_absolute(parsed, working_folder)
            result: CommandResult = parsed.run(parsed, context)
    except Interrupted as end:
        kind, message, code = 'Interrupted', f'Ended by {end.name}.', end.exit_code
        document = {'interrupted_by': end.name}
    except Exception as error:
        kind, document = type(error).__name__, {}
        message, code = _describe(error)
    else:
        return result
    # The exception is gone here, and with it the arrays that its frames held.
    if context.written.paths() or kind == 'Interrupted':
        message = f'{message} {context.written.sentence()}'
    _complain(message)
    return failure(kind, message, code, document)


def _make_absolute(parsed: argparse.Namespace, working_folder: Path | None) -> None:
    """Make the path of the output independent of the working folder, which may be removed during a long run.

    Raises:
        OutputError: the working folder was removed.
    """
    if working_folder is None:
        raise OutputError('The working folder does not exist any more: change to another one and start again.')
    if 'output' in parsed and parsed.output is not None:
        parsed.output = working_folder / parsed.output


def _describe(error: Exception) -> tuple[str, int]:
    """Return the message and the exit code of an error."""
    if isinstance(error, PtychoPINNError):
        return str(error), exit_code_of(error)
    if isinstance(error, MemoryError) or says_out_of_memory(str(error)):
        words = str(error).splitlines()[0] if str(error) else type(error).__name__
        return (
            f'There is not enough memory ({words}): free some memory, raise the limit of the job or the shell (ulimit '
            '-v), or use smaller batches (--set inference.batch_size=..., --set training.batch_size=...) or fewer '
            'patterns (--set data.subsample=...).'
        ), ExitCode.FAILED
    if isinstance(error, OSError):
        return _describe_system_error(error), exit_code_of(error)
    traceback.print_exception(error)
    return (
        f'{type(error).__name__}: {error}. This is a defect of ptychopinn_torch_plugin: please report it with the '
        'lines above.'
    ), ExitCode.FAILED


def _describe_system_error(error: OSError) -> str:
    """Return what the system refused, without its error number."""
    if error.strerror is None:
        return str(error)
    where = f'{error.filename}: ' if error.filename is not None else ''
    return f'{where}{error.strerror}. Check the path, its permissions and the space on its disk.'


def _report(result: CommandResult, parsed: argparse.Namespace, written: WrittenFiles, stdout: TextIO | None) -> int:
    text = json_of(result, parsed.command, written.paths()) if parsed.json else result.text
    return _print(text + '\n' if text else '', stdout, written) or int(result.code)


def _print(text: str, stdout: TextIO | None, written: WrittenFiles | None = None) -> int:
    """Print ``text`` on ``stdout`` and return the exit code of that: a failure where stdout cannot take it."""
    if not text:
        return int(ExitCode.DONE)
    try:
        if stdout is None:
            raise ValueError('it is closed')
        stdout.write(text)
        stdout.flush()
    except (OSError, ValueError) as error:
        discard(stdout)
        message = f'The result cannot be written to stdout ({getattr(error, "strerror", None) or error}).'
        _complain(f'{message} {written.sentence()}' if written and written.paths() else message)
        return int(ExitCode.FAILED)
    return int(ExitCode.DONE)


def _complain(message: str) -> None:
    print(f'{PROGRAM}: {message}', file=sys.stderr)
