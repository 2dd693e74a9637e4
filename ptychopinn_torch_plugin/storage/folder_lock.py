"""A lock on an output folder: one run writes into it at a time.

The lock is ``filelock.SoftFileLease``: a marker file created exclusively (``O_EXCL``), which is atomic on network
file systems, too, and needs no ``flock``, which many of them lack or emulate for one node only. A native lock
(``filelock.UnixFileLock``) would be released by the kernel when its owner dies, but two nodes of a cluster need not see
each other's native locks. The library decides whether the owner of a marker is dead:

- an owner on this machine (same host name and process namespace) by its process number and start time, at once;
- an owner on another machine by the heartbeat: the owner renews the time of the marker three times per
  :data:`LEASE_S`. Who wants the folder watches the marker on its own clock for that long, so clocks that differ
  between machines do no harm.

A second file beside the marker describes the owner for the message. Both files are removed when the run ends.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from filelock import LeaseCompromise, LeaseSettingsMismatch, SoftFileLease, Timeout

from ..errors import OutputError
from .atomic import write_atomically, writer_tag

logger = logging.getLogger(__name__)

LEASE_S = 60.0
"""Seconds without a heartbeat after which the owner on another machine counts as dead."""

MARKER_FILE = '.ptychopinn-lock'
OWNER_FILE = '.ptychopinn-lock.json'

_POLL_S = 0.5
_MAX_COMMAND = 300
"""Characters of the command line that a message repeats."""
_MAX_OWNER_BYTES = 16_384


@dataclass(frozen=True)
class Owner:
    """The process that holds a folder, as its message names it."""

    host: str
    pid: int
    since: str
    """Local time at which the run began, ISO 8601 with the offset from UTC."""
    purpose: str
    """What the run does, for example ``'training'``."""
    command: str
    """Its command line."""
    writer: str
    """:func:`~.atomic.writer_tag` of the process: machine, start of the machine and process namespace, number."""


class FolderLock:
    """A folder that this process holds; see :func:`locked`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        """The folder that is held."""
        self._loss: LeaseCompromise | None = None

    def note_loss(self, loss: LeaseCompromise) -> None:
        """Record that the lock was lost; called by the thread that renews the marker."""
        self._loss = loss
        logger.error('The lock on %s was lost (%s).', self.folder, loss.reason)

    def check(self) -> None:
        """Raise if the lock was lost; call it before a file in the folder is replaced.

        Raises:
            OutputError: the marker was removed, or this process stood still for longer than :data:`LEASE_S` and a run
                on another machine took the folder over.
        """
        if self._loss is not None:
            raise OutputError(
                f'{self.folder} is no longer locked by this run ({self._loss.reason}): another run may be writing '
                'there. Nothing more is written; start again into another output folder.'
            )


@contextmanager
def locked(folder: Path, purpose: str) -> Iterator[FolderLock]:
    """Hold ``folder`` for one run; a second run into it is refused, with a message that names the first.

    Args:
        folder: output folder; made if absent.
        purpose: what the run does, for the message of the refused one, for example ``'training'``.

    Yields:
        The lock; its :meth:`FolderLock.check` raises once the lock was lost.

    Raises:
        OutputError: another run holds the folder, or the marker cannot be written.
    """
    folder = Path(folder)
    lock = FolderLock(folder)
    lease = SoftFileLease(
        folder / MARKER_FILE, lease_duration=LEASE_S, on_compromise=lock.note_loss, thread_local=False
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _acquire(lease, folder)
    except (OSError, LeaseSettingsMismatch) as error:  # Timeout is an OSError, too
        raise OutputError(_refusal(folder, error)) from error
    try:
        owner = Owner(
            host=platform.node(),
            pid=os.getpid(),
            since=datetime.now().astimezone().isoformat(' ', timespec='seconds'),
            purpose=purpose,
            command=_command(),
            writer=writer_tag(),
        )
        write_atomically(folder / OWNER_FILE, json.dumps(asdict(owner), indent=2).encode() + b'\n')
        yield lock
    finally:
        # In this order: a run that begins in between must not have its own description removed.
        if lease.compromise is None:
            with suppress(OSError):
                (folder / OWNER_FILE).unlink(missing_ok=True)
        lease.release()


def _acquire(lease: SoftFileLease, folder: Path) -> None:
    """Take the lease; wait for at most :data:`LEASE_S` where only the heartbeat can tell whether the owner lives.

    Raises:
        Timeout: another run holds the folder.
    """
    try:
        lease.acquire(timeout=0)
    except Timeout:
        owner = read_owner(folder)
        if owner is not None and _machine(owner.writer) == _machine(writer_tag()):
            raise
    else:
        return
    logger.warning(
        '%s is marked as in use%s: waiting up to %.0f s for a sign that this run is alive.',
        folder,
        '' if owner is None else f' by process {owner.pid} on {owner.host}',
        LEASE_S,
    )
    first = _heartbeat(folder)
    deadline = time.monotonic() + LEASE_S + 4 * _POLL_S
    while True:
        try:
            lease.acquire(timeout=0)
        except Timeout:
            if _heartbeat(folder) != first or time.monotonic() > deadline:
                raise
            time.sleep(_POLL_S)
        else:
            return


def _heartbeat(folder: Path) -> tuple[int, int] | None:
    """Return what changes when the owner renews or replaces the marker, None where there is no marker.

    The file is opened because network file systems hand out cached times for a name, but fresh ones for an open file.
    """
    try:
        with _open(folder / MARKER_FILE) as file:
            status = os.fstat(file.fileno())
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def read_owner(folder: Path) -> Owner | None:
    """Return the description of the run that holds ``folder``; None where there is none that can be read."""
    try:
        with _open(folder / OWNER_FILE) as file:
            return Owner(**json.loads(file.read(_MAX_OWNER_BYTES)))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        logger.debug('%s does not describe the owner of the lock: %s', folder / OWNER_FILE, error)
        return None


def _open(path: Path) -> BinaryIO:
    """Open a file of this module to read; a named pipe in its place does not block."""
    return os.fdopen(os.open(path, os.O_RDONLY | getattr(os, 'O_NONBLOCK', 0)), 'rb')


def _refusal(folder: Path, error: Exception) -> str:
    """Return the sentence for a folder that cannot be locked."""
    marker = folder / MARKER_FILE
    if not os.path.lexists(marker):
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        return f'{folder} cannot be locked for this run ({reason}): choose another output folder.'
    owner = read_owner(folder)
    if owner is None:
        text = f'{folder} is in use by another run, which has left no readable description.'
    else:
        text = (
            f'{folder} is in use: process {owner.pid} on {owner.host} began {owner.purpose} there at {owner.since} '
            f'("{owner.command}").'
        )
    text += ' Wait until it ends, stop it, or choose another output folder'
    is_known_alive = owner is not None and _machine(owner.writer) == _machine(writer_tag())
    return text + ('.' if is_known_alive else f'; if no run is using the folder any more, remove {marker}.')


def _command() -> str:
    """Return the command line of this process in printable characters, shortened for a message."""
    words = shlex.join(sys.argv).encode('utf-8', 'backslashreplace').decode()
    return words if len(words) <= _MAX_COMMAND else words[:_MAX_COMMAND] + ' ...'


def _machine(writer: str) -> str:
    return writer.partition('-')[0]
