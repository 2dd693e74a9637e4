"""Progress of a reconstruction over its stages, weighted by their time, and previews on the scan's object grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ..config import Config
from ..estimate import DEFAULT_WIDTH, FIXED_SHARE, METRICS_EPOCHS, NETWORK_S, SOLVER_S
from ..observer import APPLYING_NETWORK, METRICS, REFINING, VERIFYING, Observer
from ..physics.patches import extract_window


class Stage(NamedTuple):
    """A stage of a reconstruction."""

    name: str
    steps: int
    """Steps that are counted, at least 1."""
    units: int
    """Work of all steps together, in units of about the same time."""


def plan_stages(
    config: Config, modes: int, *, network_steps: int, turns: int, width: int, verified_epochs: float
) -> list[Stage]:
    """Return the stages of a reconstruction. One unit is a step of the network, or an epoch if that takes less time.

    Args:
        config: its sections ``inference`` and ``refinement`` are used.
        modes: incoherent modes of the probe.
        network_steps: steps of the network in all windows; 0 without a network.
        turns: groups of windows, one after the other; a step processes the patterns of one of them.
        width: width of the network.
        verified_epochs: work of the verification, in epochs over all patterns with a fixed probe; 0 without one.
    """
    refinement = config.refinement
    fixed_s = FIXED_SHARE * SOLVER_S * max(modes, refinement.probe_modes)
    epoch_s = fixed_s if not (refinement.refine_probe or refinement.refine_positions) else fixed_s / FIXED_SHARE
    step_s = NETWORK_S * float(width / DEFAULT_WIDTH) ** 0.5 / max(turns, 1) if network_steps else epoch_s
    unit_s = min(step_s, epoch_s)
    stages = []
    if network_steps:
        stages.append(Stage(APPLYING_NETWORK, network_steps, network_steps * round(step_s / unit_s)))
    epochs = refinement.refine_epochs
    if epochs:
        stages.append(Stage(REFINING, epochs, epochs * round(epoch_s / unit_s)))
    stages.append(Stage(METRICS, 1, max(1, round(METRICS_EPOCHS * epoch_s / unit_s))))
    if verified_epochs:
        stages.append(Stage(VERIFYING, 1, max(1, round(verified_epochs * fixed_s / unit_s))))
    return stages


class ProgressReporter:
    """Reports one reconstruction to its observer. The progress never goes back.

    Args:
        observer: receives stages, progress and previews, and may stop the run.
        stages: the stages in their order.
        object_shape: shape ``(h, w)`` of the object grid that previews are drawn on.
        preview_interval: steps between previews; 0 for none.
    """

    def __init__(
        self, observer: Observer, stages: Sequence[Stage], object_shape: tuple[int, int], preview_interval: int
    ) -> None:
        self._observer = observer
        self._stages = list(stages)
        self._object_shape = object_shape
        self._interval = preview_interval
        self._number = self._step = self._reported = 0

    def begin(self, name: str) -> None:
        """Begin the stage ``name``, or begin it anew."""
        self._number, self._step = [stage.name for stage in self._stages].index(name), 0
        self._observer.on_stage(name)

    def advance(self) -> None:
        """Count a step of the present stage. It may take more than were planned: smaller batches need more."""
        self._step += 1
        self.reach(self._step / self._stages[self._number].steps)

    def reach(self, share: float) -> None:
        """Reach a share of the present stage."""
        self._report(self._units_before + round(self._stages[self._number].units * min(1.0, share)))

    def finish(self) -> None:
        """Reach the goal, whatever was left out."""
        if self._reported < self._goal:
            self._report(self._goal)

    def _report(self, done: int) -> None:
        self._reported = max(self._reported, done)
        self._observer.on_progress(self._reported, self._goal)

    @property
    def _units_before(self) -> int:
        return sum(stage.units for stage in self._stages[: self._number])

    @property
    def _goal(self) -> int:
        return max(1, sum(stage.units for stage in self._stages))

    def losses(self, epoch: int, deviance: float) -> None:
        """Report the deviance per pixel of an epoch (from 1) of the refinement."""
        self._observer.on_losses(epoch, deviance, None)

    def preview(self, make: Callable[[], Tensor], origin: tuple[int, int]) -> None:
        """Show the object array ``(h, w)`` that ``make`` returns, first pixel at ``origin`` (y, x), if one is due.

        The object after the last step of network and refinement is the result, and no preview.
        """
        counted = [stage for stage in self._stages if stage.name in (APPLYING_NETWORK, REFINING)]
        step = sum(stage.steps for stage in self._stages[: self._number]) + self._step
        if self._interval and step % self._interval == 0 and step < sum(stage.steps for stage in counted):
            self._observer.on_preview(on_object_grid(make(), origin, self._object_shape))

    def should_stop(self) -> bool:
        """Return whether the run was asked to stop and keep its present result."""
        return self._observer.should_stop()


def on_object_grid(object_array: Tensor, origin: tuple[int, int], shape: tuple[int, int]) -> npt.NDArray[np.complex64]:
    """Return an object array ``(h, w)`` on an object grid of ``shape``, 1 outside it; what lies outside is cut off."""
    grid: npt.NDArray[np.complex64] = extract_window(object_array, (-origin[0], -origin[1]), shape).cpu().numpy()
    return grid
