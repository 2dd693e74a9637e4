"""The observer through which the engine reports to the parent process."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..types import Reconstruction
from .channel import Channel, StopFlag
from .job import write_result
from .messages import Losses, Preview, Progress, Stage

logger = logging.getLogger(__name__)

_PROGRESS_INTERVAL_S = 0.1
_PREVIEW_INTERVAL_S = 0.25
_PREVIEWS_KEPT = 2


class ChannelObserver:
    """:class:`~ptychopinn_torch_plugin.observer.Observer` that sends every report over a channel."""

    def __init__(self, folder: Path, channel: Channel, stop: StopFlag, *, keeps_previews: bool = False) -> None:
        """Send over ``channel``, write previews into ``folder``, stop when ``stop`` is set.

        With ``keeps_previews``, every preview is sent and the reader removes its file.
        """
        self._folder = folder
        self._keeps_previews = keeps_previews
        self._progress = Progress(0, 1)
        self._channel = channel
        self._stop = stop
        self._next_progress = 0.0
        self._next_preview = 0.0
        self._previews: list[Path] = []
        self._preview_count = 0
        self._has_skipped_previews = False

    def on_stage(self, stage: str) -> None:
        """Send the name of the stage that begins."""
        self._channel.send(Stage(stage))

    def on_progress(self, done: int, goal: int) -> None:
        """Send the progress, at most ten times a second; the last one (``done >= goal``) is always sent."""
        now = time.monotonic()
        self._progress = Progress(int(done), int(goal))
        if now >= self._next_progress or done >= goal:
            self._next_progress = now + _PROGRESS_INTERVAL_S
            self._channel.send(self._progress)

    def on_losses(self, epoch: int, training: float, validation: float | None) -> None:
        """Send the losses of an epoch."""
        self._channel.send(Losses(int(epoch), float(training), None if validation is None else float(validation)))

    def on_preview(self, object_array: npt.NDArray[np.complex64]) -> None:
        """Write the object, ``(h, w)``, to a new file, and send its progress and then its path.

        At most four previews a second are written, and only the last two files stay, unless all are to be kept. A
        preview that cannot be written (no space) is skipped: the run does not depend on it.
        """
        if time.monotonic() < self._next_preview and not self._keeps_previews:
            return
        self._preview_count += 1
        path = self._folder / f'preview-{self._preview_count:06d}.npy'
        try:
            _write_array(path, np.asarray(object_array, dtype=np.complex64))
        except OSError as error:
            if not self._has_skipped_previews:
                logger.warning('Previews are skipped: %s cannot be written (%s). The run continues.', path, error)
            self._has_skipped_previews = True
            return
        self._channel.send(self._progress)
        self._channel.send(Preview(path))
        self._previews.append(path)
        while len(self._previews) > _PREVIEWS_KEPT and not self._keeps_previews:
            self._previews.pop(0).unlink(missing_ok=True)
        self._next_preview = time.monotonic() + _PREVIEW_INTERVAL_S

    def on_result(self, reconstruction: Reconstruction) -> None:
        """Write the result into the job's folder, where the parent finds it even if this process dies."""
        write_result(self._folder, reconstruction)

    def should_stop(self) -> bool:
        """Return whether the parent or a signal has requested a stop, or the parent has died."""
        return self._stop.is_set()


def _write_array(path: Path, array: npt.NDArray[np.complex64]) -> None:
    """Write a ``.npy`` file that appears whole or, with an :class:`OSError`, not at all."""
    unfinished = path.with_suffix('.tmp')
    try:
        with unfinished.open('wb') as file:
            np.save(file, array, allow_pickle=False)
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
