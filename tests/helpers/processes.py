"""Processes that tests start: none outlives its test, however that ends."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


@contextmanager
def running(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:  # noqa: ANN401 - of Popen
    """Run ``command`` with pipes for its output, and kill it at the exit if it has not ended by then."""
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
    with subprocess.Popen(command, text=True, **(pipes | options)) as process:
        try:
            yield process
        finally:
            process.kill()
