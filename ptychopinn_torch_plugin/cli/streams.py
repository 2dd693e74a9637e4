"""Standard output and standard error, also where they are closed, full, or a pipe that nobody reads."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO, cast


class SteadyStream:
    """A text stream that drops what the stream below cannot take: a lost log is no reason to end a run."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write ``text``, or drop it."""
        if self._stream is not None:
            try:
                self._stream.write(text)
            except (OSError, ValueError):
                self._give_up()
        return len(text)

    def flush(self) -> None:
        """Flush, or drop what is left."""
        if self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self._give_up()

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        return self._stream is not None and not self._stream.closed and self._stream.isatty()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the stream has
        return getattr(self._stream, name)

    def _give_up(self) -> None:
        discard(self._stream)
        self._stream = None


@contextmanager
def prepared_streams() -> Iterator[TextIO | None]:
    """Yield stdout for the result alone (None where it is closed); all else that is printed goes to stderr."""
    _reserve_descriptors()
    stdout = sys.stdout
    steady = cast(TextIO, SteadyStream(sys.stderr))
    with redirect_stderr(steady), redirect_stdout(steady):
        yield stdout
    steady.flush()


def discard(stream: TextIO | None) -> None:
    """Send what ``stream`` still holds to nowhere: Python flushes it at its exit, and would report the error again."""
    try:
        descriptor = -1 if stream is None else stream.fileno()
    except (OSError, ValueError):  # closed, or no file below
        return
    if descriptor in (1, 2):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


def _reserve_descriptors() -> None:
    """Open the standard descriptors that are closed: a file opened later must not get what libraries print."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
