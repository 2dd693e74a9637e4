"""Write files completely or not at all, and remove temporary files of processes that have ended.

A file is written under a temporary name in its own folder, flushed to disk together with the folder, and renamed: if
the process is killed, the old or the new file is there in whole. The next writer into the folder removes the temporary
file.
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
"""Age in seconds from which a temporary file is abandoned if it is unknown whether its writer still runs."""

_PREFIX = '.ptychopinn-'
_NAME = re.compile(r'\.ptychopinn-(?P<owner>[0-9a-f]{8}-\d+)-[0-9a-f]{8}\.tmp')
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write ``content`` to ``path``; if the process is killed, the old or the new file is there in whole.

    Raises:
        OutputError: the file cannot be written; the old one is unchanged.
    """
    with open_atomically(path, memoryview(content).nbytes) as stream:
        stream.write(content)


@contextmanager
def open_atomically(path: Path, size: int) -> Iterator[BinaryIO]:
    """Open a new file for ``path`` in binary, for writing and reading; at the exit it replaces the old one.

    After an exception only the old file is left. Missing folders are made.

    Args:
        path: the file; a symbolic link is replaced, not followed.
        size: expected size in bytes, for the message about a full disk.

    Raises:
        OutputError: the system cannot write (:class:`OSError`); the old file is unchanged.
    """
    path = Path(path)
    temporary = path.with_name(temporary_name())
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
    """Remove temporary files in ``folder`` whose writer has ended, or is unknown and older than ``ABANDONED_S``.

    Only names of this module's pattern are removed. A file that cannot be removed stays.
    """
    for file in folder.glob(f'{_PREFIX}*.tmp'):
        match = _NAME.fullmatch(file.name)
        try:
            if match and is_abandoned(match['owner'], file):
                file.unlink(missing_ok=True)
                logger.debug('Removed %s, an unfinished file of a process that has ended.', file)
        except OSError as error:
            logger.debug('%s, of a process that has ended, cannot be removed: %s', file, error)


def temporary_name() -> str:
    """Return a new name for a temporary file of this process, which :func:`sweep` removes if the process dies."""
    return f'{_PREFIX}{writer_tag()}-{uuid4().hex[:8]}.tmp'


def writer_tag() -> str:
    """Return the tag of this process in names of temporary files: machine (since its start) and process number."""
    return f'{_machine()}-{os.getpid()}'


def is_abandoned(owner: str, path: Path) -> bool:
    """Return whether the process that made ``path`` has ended; for another machine, whether ``path`` is too old.

    Args:
        owner: the :func:`writer_tag` of the process.
        path: a file or folder that it made; one of another user is never abandoned.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    if stat.S_ISLNK(status.st_mode) or (hasattr(os, 'getuid') and status.st_uid != os.getuid()):
        return False
    machine, _, pid = owner.partition('-')
    # Signal 0 is a query on POSIX only; elsewhere it would end the process.
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
    """Return eight hexadecimal digits for this machine, its start and the process namespace of the process numbers."""
    parts = [platform.node()]
    boot, namespace = Path('/proc/sys/kernel/random/boot_id'), Path('/proc/self/ns/pid')
    if boot.exists() and namespace.is_symlink():
        parts += [boot.read_text(encoding='ascii'), str(namespace.readlink())]
    return hashlib.sha256('|'.join(parts).encode()).hexdigest()[:8]


def _discard(file: Path) -> None:
    """Remove an unfinished file; if this fails, the next writer removes it."""
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        logger.debug('%s cannot be removed: %s', file, error)


def _flush_folder(folder: Path) -> None:
    """Flush the new name in ``folder`` to disk, where the system supports this."""
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
    """Return the error with the system's reason, the bytes needed, and the remedy."""
    kept = 'the old file of that name is unchanged' if path.exists() else 'nothing was written'
    if error.errno in _FULL:
        disk = next(folder for folder in path.absolute().parents if folder.is_dir())
        free = shutil.disk_usage(disk).free
        return OutputError(
            f'{path} could not be written ({error.strerror}): it needs {size:,} bytes, {free:,} are free on its disk; '
            f'{kept}. Free some space or choose another folder.'
        )
    return OutputError(f'{path} could not be written ({error.strerror or error}); {kept}. Choose another folder.')
