"""Model files of the best epochs, kept in a folder of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from ..storage.model_file import MODEL_SUFFIX

CHECKPOINT_FOLDER = 'checkpoints'
_PREFIX = 'epoch-'


class Checkpoints:
    """The folder ``checkpoints`` beside the model: the files of the best ``keep`` epochs, and no others of that form.

    Args:
        folder: the run's output folder.
        keep: files to keep; 0 writes none.
        kept: epoch and rank of the files that an interrupted run left; files of other runs are removed at the first
            :meth:`offer`.
    """

    def __init__(self, folder: Path, keep: int, kept: Mapping[int, float] | None = None) -> None:
        self._folder = folder / CHECKPOINT_FOLDER
        self._keep = keep
        self._ranks = dict(kept or {})

    @property
    def ranks(self) -> dict[int, float]:
        """Rank by epoch of the files kept, the smallest is best."""
        return dict(self._ranks)

    def offer(self, epoch: int, rank: float, write: Callable[[Path], None]) -> None:
        """Let ``write`` write the model of ``epoch`` if its ``rank`` is among the best; the smallest is best."""
        if self._keep == 0:
            return
        best = sorted({**self._ranks, epoch: rank}.items(), key=lambda item: (item[1], item[0]))[: self._keep]
        self._ranks = dict(best)
        if epoch in self._ranks:
            write(self._path(epoch))
        wanted = {self._path(number) for number in self._ranks}
        for path in self._folder.glob(f'{_PREFIX}*{MODEL_SUFFIX}'):
            if path not in wanted:
                path.unlink(missing_ok=True)

    def _path(self, epoch: int) -> Path:
        return self._folder / f'{_PREFIX}{epoch:06d}{MODEL_SUFFIX}'
