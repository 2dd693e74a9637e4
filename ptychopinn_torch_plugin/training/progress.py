"""Progress of a training over all of its work: batches of the network, and the calibrations between them."""

from __future__ import annotations

from collections.abc import Sequence

from ..config import Config
from ..estimate import DEFAULT_WIDTH, NETWORK_S, SOLVER_S, TRAINING_S
from ..observer import FITTING_PROBE, TRAINING, Observer
from .batches import TrainingScan
from .calibration import FIRST_EPOCHS, LATER_EPOCHS, is_solved
from .data import PATTERNS_PER_STEP

BATCH_UNITS = 100
"""Units of progress of one batch in a training with calibrations; without them, a batch is one unit."""


class TrainingProgress:
    """Counts the work of a training in units of about the same time, and reports it.

    An epoch is a calibration, if there is one, and then the batches of the network.

    Args:
        observer: receives stages and progress.
        config: the configuration tree.
        scans: the scans.
        batches: batches of the network in one epoch.
        epoch: finished epochs of a run that is resumed.
    """

    def __init__(
        self, observer: Observer, config: Config, scans: Sequence[TrainingScan], batches: int, epoch: int = 0
    ) -> None:
        self._observer = observer
        self._epochs = config.training.epochs
        self._batches = batches
        self._batch_units = BATCH_UNITS if is_solved(config) else 1
        self._prediction_units = self._solver_units = 0
        if is_solved(config):
            size = config.data.group_size
            groups = config.training.batch_size or max(1, PATTERNS_PER_STEP // size)
            patterns = sum(scan.tensors.size for scan in scans) / len(scans)
            modes = sum(scan.tensors.size * len(scan.state.probe) for scan in scans) / len(scans)
            network = config.model.steps * float(config.model.width / DEFAULT_WIDTH) ** 0.5
            unit_s = TRAINING_S * network * min(groups * size, patterns) / BATCH_UNITS
            self._solver_units = max(1, round(SOLVER_S * modes / unit_s))
            self._prediction_units = max(1, round(NETWORK_S * network * patterns / unit_s))
        self._scans = len(scans)
        self._calibrated = 0
        self._start = self._start_of(epoch)
        self._goal = self._start_of(self._epochs)

    def on_prediction(self) -> None:
        """Count the object of one scan that the network has reconstructed for a calibration."""
        self._calibrate(self._prediction_units)

    def on_solver_epoch(self) -> None:
        """Count one epoch of the solver for one scan."""
        self._calibrate(self._solver_units)

    def on_batch(self, epoch: int, batch: int) -> None:
        """Count a batch of the network: ``batch`` (from 1) of epoch ``epoch`` (from 0)."""
        if batch == 1:
            self._observer.on_stage(TRAINING)
        following = self._start_of(epoch + 1)
        self._observer.on_progress(following - (self._batches - batch) * self._batch_units, self._goal)
        if batch == self._batches:
            self._start, self._calibrated = following, 0

    def _calibrate(self, units: int) -> None:
        if not units:  # only the photon scale is learned, which takes no time worth counting
            return
        if not self._calibrated:
            self._observer.on_stage(FITTING_PROBE)
        self._calibrated += units
        self._observer.on_progress(self._start + self._calibrated, self._goal)

    def _start_of(self, epoch: int) -> int:
        """Return the units of all work before epoch ``epoch`` (from 0)."""
        batches = epoch * self._batches * self._batch_units
        if epoch == 0:
            return batches
        solved = FIRST_EPOCHS + (epoch - 1) * LATER_EPOCHS
        return batches + self._scans * (solved * self._solver_units + (epoch - 1) * self._prediction_units)
