"""Which of the files that a command writes are on disk: the answer that every end of a command reports."""

from __future__ import annotations

from pathlib import Path

_Signature = tuple[int, int, int] | None


class WrittenFiles:
    """The files that a command may write, compared with what was there before.

    Every file of this package replaces the old one when it is whole (:mod:`.atomic`), so a path whose file is another
    one than before holds a whole new file, however the command ended.
    """

    def __init__(self) -> None:
        self._before: dict[Path, _Signature] = {}

    def watch(self, *paths: Path) -> None:
        """Record the present state of ``paths`` (files, or folders that get new entries), before they are written."""
        for path in paths:
            self._before.setdefault(path, _signature(path))

    def paths(self) -> tuple[Path, ...]:
        """Return the watched paths that were written since, in the order in which they were given."""
        return tuple(path for path, before in self._before.items() if _signature(path) not in (None, before))

    def sentence(self) -> str:
        """Return what is on disk, in one sentence."""
        written = self.paths()
        return f'Written: {", ".join(str(path) for path in written)}.' if written else 'Nothing was written.'


def _signature(path: Path) -> _Signature:
    try:
        status = path.stat()
    except OSError:  # not there, or out of reach: nothing that the command could have written
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
