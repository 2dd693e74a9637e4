"""Kill a writer at many moments: a program, started by ``test_files.py`` with the folder to write into.

Prints one JSON object: the moments, and whatever was found that is neither the old nor the new file.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ptychopinn_torch_plugin.storage import atomic as files
from ptychopinn_torch_plugin.storage.atomic import open_atomically, write_atomically

OLD, NEW = b'old' * 100_000, b'new' * 100_000
RANDOM_MOMENTS = 60


def in_a_child(work: Callable[[], None], after_s: float | None = None) -> None:
    """Run ``work`` in another process, killed ``after_s`` seconds later if it does not do that itself."""
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(1)
    if after_s is not None:
        time.sleep(after_s)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), status


def die(*_arguments: object) -> None:
    """End as the kernel ends a process."""
    os.kill(os.getpid(), signal.SIGKILL)


def dying(owner: Any, name: str, number: int, path: Path) -> Callable[[], None]:  # noqa: ANN401 - a module or a class
    """A writer that dies instead of its ``number``-th call of ``owner.name``."""

    def work() -> None:
        before, calls = getattr(owner, name), 0

        def call(*arguments: object) -> object:
            nonlocal calls
            calls += 1
            if calls == number:
                die()
            return before(*arguments)

        setattr(owner, name, call)
        write_atomically(path, NEW)

    return work


def half_written(path: Path) -> Callable[[], None]:
    """A writer that dies in the middle of its file."""

    def work() -> None:
        with open_atomically(path, len(NEW)) as stream:
            stream.write(NEW[: len(NEW) // 2])
            stream.flush()
            die()

    return work


def writes_on(path: Path) -> Callable[[], None]:
    """A writer that changes the file again and again."""

    def work() -> None:
        while True:
            write_atomically(path, NEW)
            write_atomically(path, OLD)

    return work


def main(folder: Path) -> None:
    """Try all moments."""
    path = folder / 'file'
    steps = {
        'in the middle of the file': (half_written(path), OLD),
        'before the flush': (dying(os, 'fsync', 1, path), OLD),
        'before the renaming': (dying(Path, 'replace', 1, path), OLD),
        'before the folder is flushed': (dying(files, '_flush_folder', 1, path), NEW),
    }
    wrong = []
    write_atomically(path, OLD)
    for name, (work, expected) in steps.items():
        in_a_child(work)
        if path.read_bytes() != expected:
            wrong.append(name)
        write_atomically(path, OLD)
    found, left = set(), 0
    for moment in range(RANDOM_MOMENTS):
        in_a_child(writes_on(path), after_s=1e-4 * moment)
        found.add(path.read_bytes())
        left = max(left, len(list(folder.iterdir())) - 1)
    if not found <= {OLD, NEW}:
        wrong.append('at a random moment')
    write_atomically(path, NEW)
    swept = [file.name for file in folder.iterdir()] == ['file']
    print(json.dumps({'moments': list(steps), 'wrong': wrong, 'contents': len(found), 'left': left, 'swept': swept}))


if __name__ == '__main__':
    main(Path(sys.argv[1]))
