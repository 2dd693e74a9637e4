"""Calibration: probe, positions and photon scale of every scan, refined while the network is trained.

Two minimisations alternate. Before every epoch the network reconstructs each scan, and a few epochs of the solver
refine probe and positions from there; the network is then trained with them. The gradient of a batch of 64 patterns
determines a probe poorly; the solver takes all patterns, preconditions, and keeps positions from drifting together. The
first calibration starts from a transparent object, because the network is not trained yet.

Held-out positions take part: a few numbers per pattern cannot overfit, and an error of the probe would hide the
quality of the network.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import nn

from ..config import Config, RefinementConfig
from ..data.sharding import processes
from ..data.tensors import ScanTensors
from ..engines.network import Predictor, steps_of, windows_of
from ..engines.progress import ProgressReporter, Stage, on_object_grid
from ..engines.solver import Solver
from ..errors import ConfigurationError
from ..models.base import Generator
from ..observer import APPLYING_NETWORK, Observer, SilentObserver
from ..physics.forward import simulate
from ..types import ReconstructionState
from .batches import TrainingScan
from .state import Weights

logger = logging.getLogger(__name__)

FIRST_EPOCHS = 40
"""Epochs of the solver before the first epoch of the network, from a transparent object."""
FIRST_PROBE_START = 2
FIRST_POSITIONS_START = 10
LATER_EPOCHS = 10
"""Epochs of the solver before every later epoch, from the object of the network."""
_PROBE = 'probe_{}'
_POSITIONS = 'positions_{}'


class Listener(Protocol):
    """Counts the steps of a calibration."""

    def on_prediction(self) -> None:
        """Count the object of one scan that the network has reconstructed."""

    def on_solver_epoch(self) -> None:
        """Count one epoch of the solver for one scan."""


class SilentListener:
    """Listener that counts nothing."""

    def on_prediction(self) -> None:
        """Ignore it."""

    def on_solver_epoch(self) -> None:
        """Ignore it."""


SILENT_LISTENER = SilentListener()


def is_solved(config: Config) -> bool:
    """Return whether the solver refines anything before every epoch."""
    return config.training.probe_trainable or config.training.positions_trainable


def is_calibrated(config: Config) -> bool:
    """Return whether anything but the network is refined.

    Raises:
        ConfigurationError: loader processes have copies of the scans, which a calibration cannot change.
    """
    training, workers = config.training, config.execution.workers
    requested = is_solved(config) or training.intensity_scale_trainable
    if requested and workers:
        raise ConfigurationError(
            f'execution.workers = {workers}: loader processes cannot follow a probe, positions or a scale that are '
            'learned with the network; set it to 0, or switch "Learn the probe" off.'
        )
    return requested


class Calibration(nn.Module):
    """Calibrates the states of all scans; what it found is in its buffers, and so in the state of the Lightning module.

    Args:
        scans: the scans, whose states are replaced.
        config: the configuration tree.
        observer: receives the object that the network reconstructs of the first scan, and may stop a calibration.

    Attributes:
        listener: counts the steps.
    """

    def __init__(self, scans: Sequence[TrainingScan], config: Config, observer: Observer) -> None:
        super().__init__()
        self.listener: Listener = SILENT_LISTENER
        self._scans = scans
        self._config = config
        self._observer = observer
        for number, scan in enumerate(scans):
            self.register_buffer(_PROBE.format(number), torch.view_as_real(scan.state.probe).clone())
            self.register_buffer(_POSITIONS.format(number), scan.state.positions.clone())

    def run(self, generator: Generator | None) -> bool:
        """Calibrate every scan from the object that ``generator`` makes of it, or from a transparent one if None.

        Returns:
            Whether the calibration was finished. One that was stopped changes nothing.
        """
        states = []
        for number, scan in enumerate(self._scans):
            observer = self._observer if number == 0 else _OnlyStop(self._observer)
            states.append(calibrate(scan, generator, self._config, observer, self.listener))
            if self._observer.should_stop():
                return False
        for number, state in enumerate(states):
            self.get_buffer(_PROBE.format(number)).copy_(torch.view_as_real(state.probe))
            self.get_buffer(_POSITIONS.format(number)).copy_(state.positions)
        self.restore()
        return True

    def restore(self) -> None:
        """Replace the states of the scans by those of the buffers."""
        for number, scan in enumerate(self._scans):
            probe = torch.view_as_complex(self.get_buffer(_PROBE.format(number)).to(scan.state.probe.device))
            positions = self.get_buffer(_POSITIONS.format(number)).to(scan.state.positions)
            scan.state = replace(scan.state, probe=probe.clone(), positions=positions.clone())


def calibrated_probe(weights: Weights) -> torch.Tensor | None:
    """Return the probe of the first scan from the state of a module, ``(M, H, W)`` complex64; None if absent."""
    probe = weights.get(f'calibration.{_PROBE.format(0)}')
    return None if probe is None else torch.view_as_complex(probe.contiguous())


def calibrate(
    scan: TrainingScan,
    generator: Generator | None,
    config: Config,
    observer: Observer,
    listener: Listener = SILENT_LISTENER,
) -> ReconstructionState:
    """Refine the state of one scan from the object that ``generator`` makes of it, or from a transparent one if None.

    Args:
        scan: the scan.
        generator: the network.
        config: the configuration tree.
        observer: receives the object of the network, and may stop the calibration.
        listener: counts the steps.

    Returns:
        The state with new probe and positions; its object is that of the scan's state.
    """
    tensors, found = scan.tensors, scan.state
    if generator is not None:
        found = predict(scan, generator, config, observer)
        listener.on_prediction()
        if config.inference.preview_interval and not observer.should_stop():
            observer.on_preview(on_object_grid(found.object_array, found.origin, tensors.scan.object_shape))
        if config.training.intensity_scale_trainable:
            found = replace(found, probe=found.probe * _photon_scale(tensors, found, config.inference.batch_size))
    if not is_solved(config) or observer.should_stop():
        return replace(scan.state, probe=found.probe)
    settings = _solver_settings(config, first=generator is None)
    deviances: list[float] = []

    def listen(epoch: int, deviance: float) -> bool:
        deviances.append(deviance)
        listener.on_solver_epoch()
        return observer.should_stop()

    with torch.no_grad():
        refined = Solver(tensors, found, settings, config.inference.batch_size).run(listen)
    moved = refined.positions.cpu().numpy() - tensors.scan.positions
    where = f'; it has moved the positions by {math.sqrt(float(np.square(moved).sum(axis=1).mean())):.2f} px (rms)'
    logger.log(
        logging.INFO if generator is None else logging.DEBUG,
        'The first fit of %s to %s has lowered the deviance per pixel from %.3f to %.3f%s.'
        if generator is None
        else 'A fit of %s to %s has lowered the deviance per pixel from %.3f to %.3f%s.',
        ' and '.join(_learned(config)),
        tensors.scan.name,
        deviances[0],
        deviances[-1],
        where if config.training.positions_trainable else '',
    )
    return replace(scan.state, probe=refined.probe, positions=refined.positions)


def _learned(config: Config) -> list[str]:
    """Return what the solver refines, in words."""
    learned = {'probe': config.training.probe_trainable, 'positions': config.training.positions_trainable}
    return [name for name, is_learned in learned.items() if is_learned]


def _solver_settings(config: Config, *, first: bool) -> RefinementConfig:
    return config.refinement.model_copy(
        update={
            'refine_epochs': FIRST_EPOCHS if first else LATER_EPOCHS,
            'refine_probe': config.training.probe_trainable,
            'probe_start': FIRST_PROBE_START if first else 0,
            'probe_modes': 0,
            'refine_positions': config.training.positions_trainable,
            'positions_start': FIRST_POSITIONS_START if first else 0,
            'refine_intensity': False,
            'refine_geometry': False,
            'search_positions': 0.0,
        }
    )


def predict(
    scan: TrainingScan, generator: Generator, config: Config, observer: Observer | None = None
) -> ReconstructionState:
    """Return the state of a scan with the object of the network, in as many steps as it is trained for.

    Args:
        scan: the scan on its device.
        generator: the network on the same device; its mode (training or evaluation) is the same afterwards.
        config: the configuration of the training.
        observer: may stop the prediction.
    """
    steps = min(steps_of(generator, 0), config.model.steps)
    settings = config.inference.model_copy(update={'window_size': 0})
    windows = windows_of(scan.state, generator, config.data.group_size, settings)
    shape = scan.tensors.scan.object_shape
    count = len(windows) * steps
    progress = ProgressReporter(
        _OnlyStop(observer or SilentObserver()), [Stage(APPLYING_NETWORK, count, count)], shape, 0
    )
    predictor = Predictor(scan.tensors, scan.state, generator, windows, steps, settings.batch_size, progress)
    mode = generator.training
    generator.eval()
    predicted = predictor.predict()
    generator.train(mode)
    return predicted


class _OnlyStop(SilentObserver):
    """Stops when the observer of the training stops; reports nothing to it."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def should_stop(self) -> bool:
        return self._observer.should_stop()


def _photon_scale(tensors: ScanTensors, state: ReconstructionState, batch_size: int) -> float:
    """Return the factor of the probe at which the simulated amplitudes fit the measured ones best."""
    product = square = 0.0
    part = np.array(processes().share(tensors.size), dtype=np.int64)
    with torch.no_grad():
        for chunk in np.array_split(part, math.ceil(part.size / batch_size) or 1):
            batch = tensors.batch(state, chunk)
            simulation = simulate(state.object_array[None], batch.probes, batch.patch_origins)
            model = simulation.amplitudes * batch.good_pixels
            product += float((model * batch.amplitudes).sum(dtype=torch.float64))
            square += float(model.square().sum(dtype=torch.float64))
    sums = torch.tensor([product, square], dtype=torch.float64)
    processes().sum([sums])
    return float(sums[0] / sums[1])
