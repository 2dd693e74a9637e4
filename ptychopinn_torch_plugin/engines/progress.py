"""How a reconstruction under way reports: progress over its stages, previews on the object grid, the wish to stop."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ..observer import Observer
from .stitching import Stitched


class Report:
    """One reconstruction's line to its observer.

    Args:
        observer: who listens.
        goal: steps of all stages together.
        object_shape: the grid that previews are shown on, ``(h, w)``.
        preview_interval: steps between previews; 0 shows none.
    """

    def __init__(self, observer: Observer, goal: int, object_shape: tuple[int, int], preview_interval: int) -> None:
        self._observer = observer
        self._goal = goal
        self._object_shape = object_shape
        self._interval = preview_interval
        self._done = 0

    @property
    def done(self) -> int:
        """Steps done so far."""
        return self._done

    def rewind(self, done: int) -> None:
        """Go back to ``done`` steps: what came after them is done anew."""
        self._done = done

    def advance(self) -> None:
        """One more step is done."""
        self._done += 1
        # Smaller batches, where memory ran out, may need more steps than were planned.
        self._goal = max(self._goal, self._done)
        self._observer.on_progress(self._done, self._goal)

    def preview(self, make: Callable[[], Stitched], origin: npt.NDArray[np.integer]) -> None:
        """Show what ``make`` returns, a canvas with its first pixel at ``origin`` ``(2,)`` (y, x), if one is due."""
        if self._interval and self._done % self._interval == 0 and self._done < self._goal:
            self._observer.on_preview(on_grid(make(), origin, self._object_shape)[0])

    def should_stop(self) -> bool:
        """Whether the run shall end with what it has."""
        return self._observer.should_stop()


def on_grid(
    stitched: Stitched, origin: npt.NDArray[np.integer], shape: tuple[int, int]
) -> tuple[npt.NDArray[np.complex64], npt.NDArray[np.bool_]]:
    """Place a canvas on an object grid of ``shape``; what lies outside of the grid is cut off.

    Returns:
        Object, complex64 ``(h, w)``, 1 where not covered, and coverage, bool ``(h, w)``.
    """
    object_array = np.ones(shape, dtype=np.complex64)
    coverage = np.zeros(shape, dtype=np.bool_)
    first = np.maximum(origin, 0)
    last = np.minimum(origin + np.array(stitched.canvas.shape), np.array(shape))
    there = tuple(slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
    here = tuple(slice(int(a), int(b)) for a, b in zip(first - origin, last - origin, strict=True))
    object_array[there] = stitched.canvas[here].cpu().numpy()
    coverage[there] = stitched.coverage[here].cpu().numpy()
    return object_array, coverage
