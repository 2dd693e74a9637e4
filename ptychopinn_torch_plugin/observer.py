"""The interface through which a training or a reconstruction reports its progress and is stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from .types import Reconstruction

FITTING_PROBE: Final = 'fitting the probe'
TRAINING: Final = 'training the network'
APPLYING_NETWORK: Final = 'applying the network'
REFINING: Final = 'refining'
METRICS: Final = 'computing the metrics'
VERIFYING: Final = 'verifying the result'
WRITING: Final = 'writing the files'
"""Stages of a run, as windows, terminals and ``status.json`` name them."""


RESULT_LINE: Final = {'is_result': True}
"""Marks the line of the log that the command line prints as its result."""


class Observer(Protocol):
    """Receiver of the reports of one training or reconstruction.

    The engine calls these methods from its own thread, ``on_progress`` at least once per optimiser step or physics
    step.
    """

    def on_stage(self, stage: str) -> None:
        """Receive the name of the stage that begins, for example ``'refining'``."""

    def on_progress(self, done: int, goal: int) -> None:
        """Receive the progress: ``done`` of ``goal`` units of work are finished, each of about the same time."""

    def on_losses(self, epoch: int, training: float, validation: float | None) -> None:
        """Receive the mean losses (dimensionless) of epoch ``epoch`` (from 1) of a training, which has ended.

        For a refinement ``training`` is the deviance per pixel and ``validation`` is None. An epoch can be reported
        again when it is repeated in smaller batches.
        """

    def on_preview(self, object_array: npt.NDArray[np.complex64]) -> None:
        """Receive the present object, complex64 ``(h, w)`` on the product's grid, transmission about 1 in vacuum."""

    def on_result(self, reconstruction: Reconstruction) -> None:
        """Receive the result before half scans are compared: what follows adds to its metrics only.

        It can be kept now, so that a failure later does not lose it.
        """

    def should_stop(self) -> bool:
        """Return whether the run shall finish its current batch, keep its result so far and return."""


class SilentObserver:
    """Observer that ignores all reports and never stops; base class of observers that use some of them."""

    def on_stage(self, stage: str) -> None:
        """Ignore the stage."""

    def on_progress(self, done: int, goal: int) -> None:
        """Ignore the progress."""

    def on_losses(self, epoch: int, training: float, validation: float | None) -> None:
        """Ignore the losses."""

    def on_preview(self, object_array: npt.NDArray[np.complex64]) -> None:
        """Ignore the preview."""

    def on_result(self, reconstruction: Reconstruction) -> None:
        """Ignore the result; the function that computes it returns it, too."""

    def should_stop(self) -> bool:
        """Return False: never stop."""
        return False
