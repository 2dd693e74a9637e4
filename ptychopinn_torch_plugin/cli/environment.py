"""What libraries expect of the environment of a process, and containers do not always have."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def home_folder() -> Iterator[None]:
    """Give a user without an entry in the password database and without ``HOME`` an empty home, removed at the exit.

    Some libraries look for the home folder when they are imported, and fail where there is none.
    """
    try:
        Path.home()
    except RuntimeError:
        with tempfile.TemporaryDirectory(prefix='ptychopinn-home-', ignore_cleanup_errors=True) as folder:
            os.environ['HOME'] = folder
            try:
                yield
            finally:
                del os.environ['HOME']
    else:
        yield


def working_folder() -> Path | None:
    """Return the working folder; where it was removed, change to the root folder and return None.

    Some libraries look for the working folder when they are imported, and fail where there is none.
    """
    try:
        return Path.cwd()
    except FileNotFoundError:
        os.chdir(os.sep)
        return None


def let_threads_wait() -> None:
    """Let idle threads of torch give up their core, unless the environment says otherwise; call it before its import.

    Threads that keep a core busy while they wait make every operation many times as slow where others use the machine.
    """
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
