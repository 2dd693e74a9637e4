"""What a running engine tells the world, and how the world asks it to stop."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt


class Observer(Protocol):
    """Listener of one training or reconstruction run.

    The engine calls these methods from its own thread, progress at least once per optimiser step or physics step.
    """

    def on_progress(self, done: int, goal: int) -> None:
        """``done`` of ``goal`` units of work are finished."""

    def on_losses(self, epoch: int, training: float, validation: float | None) -> None:
        """Epoch ``epoch`` (from 1) has ended with these mean losses (dimensionless)."""

    def on_preview(self, object_array: npt.NDArray[np.complex64]) -> None:
        """The object so far, complex64 ``(h, w)`` on the product's grid, transmission about 1 in vacuum."""

    def should_stop(self) -> bool:
        """True once the run shall finish its current batch, keep what it has and return."""


class SilentObserver:
    """Listens to nothing and never stops; base class for observers that care about a part."""

    def on_progress(self, done: int, goal: int) -> None:
        """Ignore the progress."""

    def on_losses(self, epoch: int, training: float, validation: float | None) -> None:
        """Ignore the losses."""

    def on_preview(self, object_array: npt.NDArray[np.complex64]) -> None:
        """Ignore the preview."""

    def should_stop(self) -> bool:
        """Never stop."""
        return False
