"""Files that are there whole or not at all, and what dead writers left behind.

A file is written under a temporary name in its own folder, flushed to disk together with the folder, and renamed: a
kill at any moment leaves the old or the new file. What a killed writer leaves is swept by the next one in that folder.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import platform
import re
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from ..errors import OutputError

logger = logging.getLogger(__name__)

ABANDONED_S = 24 * 3600.0
"""Age, in seconds, at which a temporary file counts as abandoned when nobody can tell whether its writer lives."""

_PREFIX = '.ptychopinn-'
_NAME = re.compile(r'\.ptychopinn-(?P<owner>[0-9a-f]{8}-\d+)-[0-9a-f]{8}\.tmp')
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write ``content`` to ``path``; a kill at any moment leaves the old or the new file whole.

    Raises:
        OutputError: the file cannot be written; the old one is still there.
    """
    with open_atomically(path, memoryview(content).nbytes) as stream:
        stream.write(content)


@contextmanager
def open_atomically(path: Path, size: int) -> Iterator[BinaryIO]:
    """Open a new file for ``path`` in binary, to write and to read back; it replaces the old one at the exit.

    An exception inside leaves the old file and nothing else. Missing folders are made.

    Args:
        path: where the file belongs; a link is replaced, not followed.
        size: bytes it is going to have, for the message of a full disk.

    Raises:
        OutputError: the system refuses to write (:class:`OSError`); the old file is still there.
    """
    path = Path(path)
    temporary = path.with_name(f'{_PREFIX}{writer_tag()}-{uuid4().hex[:8]}.tmp')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        with temporary.open('xb+') as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        _flush_folder(path.parent)
    except OSError as error:
        _discard(temporary)
        raise _refusal(path, size, error) from error
    except BaseException:
        _discard(temporary)
        raise


def sweep(folder: Path) -> None:
    """Remove temporary files in ``folder`` whose writer is dead, or unknown and silent for ``ABANDONED_S``.

    Only files of this module's own pattern are looked at. What cannot be removed is left for the next time.
    """
    for file in folder.glob(f'{_PREFIX}*.tmp'):
        match = _NAME.fullmatch(file.name)
        try:
            if match and is_abandoned(match['owner'], file):
                file.unlink(missing_ok=True)
                logger.debug('Removed %s, which its writer left unfinished.', file)
        except OSError as error:
            logger.debug('%s was left by a dead writer and cannot be removed: %s', file, error)


def writer_tag() -> str:
    """This process in the names of what it writes: machine (since it was started) and process number."""
    return f'{_machine()}-{os.getpid()}'


def is_abandoned(owner: str, path: Path) -> bool:
    """Whether the process that made ``path`` is dead, or the path too old for a process of another machine.

    Args:
        owner: the :func:`writer_tag` of the process.
        path: what it made, of this user; anybody else's is never abandoned.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    if stat.S_ISLNK(status.st_mode) or (hasattr(os, 'getuid') and status.st_uid != os.getuid()):
        return False
    machine, _, pid = owner.partition('-')
    # Signal 0 asks on POSIX only; elsewhere it would end the process.
    if machine == _machine() and os.name == 'posix':
        return not _is_alive(int(pid))
    return time.time() - status.st_mtime > ABANDONED_S


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _machine() -> str:
    """Eight hexadecimal digits for this machine, start and process namespace: where process numbers are one's own."""
    parts = [platform.node()]
    boot, namespace = Path('/proc/sys/kernel/random/boot_id'), Path('/proc/self/ns/pid')
    if boot.exists() and namespace.is_symlink():
        parts += [boot.read_text(encoding='ascii'), str(namespace.readlink())]
    return hashlib.sha256('|'.join(parts).encode()).hexdigest()[:8]


def _discard(file: Path) -> None:
    """Remove an unfinished file; where even that is refused, the next writer sweeps it."""
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        logger.debug('%s cannot be removed: %s', file, error)


def _flush_folder(folder: Path) -> None:
    """Have the new name on disk, too, where the system can do so for a folder."""
    if os.name != 'posix':
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _refusal(path: Path, size: int, error: OSError) -> OutputError:
    """The system's words, the bytes needed, and what to do."""
    kept = 'the file of that name is still the old one' if path.exists() else 'nothing was written'
    if error.errno in _FULL:
        disk = next(folder for folder in path.absolute().parents if folder.is_dir())
        free = shutil.disk_usage(disk).free
        return OutputError(
            f'{path} could not be written ({error.strerror}): it needs {size:,} bytes, {free:,} are free on its disk; '
            f'{kept}. Free some space or choose another folder.'
        )
    return OutputError(f'{path} could not be written ({error.strerror or error}); {kept}. Choose another folder.')
