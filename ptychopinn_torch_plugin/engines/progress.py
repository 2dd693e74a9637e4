"""Progress of a reconstruction over its stages, and previews on the scan's object grid."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ..observer import Observer
from ..physics.patches import extract_window


class ProgressReporter:
    """Reports one reconstruction to its observer.

    Args:
        observer: receives progress and previews, and may stop the run.
        goal: steps of all stages together.
        object_shape: shape ``(h, w)`` of the object grid that previews are drawn on.
        preview_interval: steps between previews; 0 for none.
    """

    def __init__(self, observer: Observer, goal: int, object_shape: tuple[int, int], preview_interval: int) -> None:
        self._observer = observer
        self._goal = goal
        self._object_shape = object_shape
        self._interval = preview_interval
        self._done = 0

    @property
    def done(self) -> int:
        """Number of steps done."""
        return self._done

    def rewind(self, done: int) -> None:
        """Return to ``done`` steps, because the later ones are repeated."""
        self._done = done

    def advance(self) -> None:
        """Count one step."""
        self._done += 1
        # Smaller batches, after memory ran out, may need more steps than were planned.
        self._goal = max(self._goal, self._done)
        self._observer.on_progress(self._done, self._goal)

    def finish(self) -> None:
        """Count all steps as done, because the remaining ones are not needed."""
        self._done = self._goal
        self._observer.on_progress(self._done, self._goal)

    def losses(self, epoch: int, deviance: float) -> None:
        """Report the deviance per pixel of an epoch (from 1) of the refinement."""
        self._observer.on_losses(epoch, deviance, None)

    def preview(self, make: Callable[[], Tensor], origin: tuple[int, int]) -> None:
        """Show the object array ``(h, w)`` that ``make`` returns, first pixel at ``origin`` (y, x), if one is due."""
        if self._interval and self._done % self._interval == 0 and self._done < self._goal:
            self._observer.on_preview(on_object_grid(make(), origin, self._object_shape))

    def should_stop(self) -> bool:
        """Return whether the run was asked to stop and keep its present result."""
        return self._observer.should_stop()


def on_object_grid(object_array: Tensor, origin: tuple[int, int], shape: tuple[int, int]) -> npt.NDArray[np.complex64]:
    """Return an object array ``(h, w)`` on an object grid of ``shape``, 1 outside it; what lies outside is cut off."""
    grid: npt.NDArray[np.complex64] = extract_window(object_array, (-origin[0], -origin[1]), shape).cpu().numpy()
    return grid
