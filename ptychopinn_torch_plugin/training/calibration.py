"""Probe, positions and photon scale of every scan, learned while the network is trained.

Before every epoch the network reconstructs each scan, and a few epochs of the refinement's solver move the probe and
the positions from there; the network then trains with what was found. Two minimisers that take turns, because the
gradient of a batch of 64 patterns says little about a probe: the solver sees all patterns, preconditions, and keeps
positions from drifting together. The first turn begins from a flat object, since the network knows nothing yet.

All positions take part, those held out from the network, too: a few numbers per pattern are not learned by heart, and
an error of the probe would hide what the network got right.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn

from ..config import Config, RefinementConfig
from ..data.tensors import ScanTensors
from ..engines.network import Predictor, steps_of, windows_of
from ..engines.progress import ProgressReporter
from ..engines.solver import Solver
from ..errors import ConfigurationError
from ..models.base import Generator
from ..observer import Observer, SilentObserver
from ..physics.forward import simulate
from ..types import ReconstructionState
from .batches import TrainingScan
from .module import PtychoPINNModule

logger = logging.getLogger(__name__)

STATE_PREFIX = 'unknowns.'
"""Name of :class:`Unknowns` in the state of the Lightning module."""
_PROBE = 'probe_{}'
_SHIFT = 'shift_{}'

FIRST_EPOCHS = 40
"""Epochs of the solver before the network's first, from a flat object."""
FIRST_PROBE_START = 2
FIRST_POSITIONS_START = 10
TURN_EPOCHS = 10
"""Epochs of the solver in every later turn, from the object of the network."""
EPOCHS_PER_LINE = 5
"""How often a turn writes a line to the log."""


def learns_unknowns(config: Config) -> bool:
    """Whether anything but the network is learned.

    Raises:
        ConfigurationError: loader processes that live on would never hear of what was learned.
    """
    training, execution = config.training, config.execution
    wanted = training.probe_trainable or training.positions_trainable or training.intensity_scale_trainable
    if wanted and execution.workers and execution.persistent_workers:
        raise ConfigurationError(
            'execution.persistent_workers keeps loader processes that would not hear of a probe, positions or an '
            'intensity scale that is learned: switch it off.'
        )
    return wanted


class Unknowns(nn.Module):
    """What is learned of every scan, as buffers: they are part of the module's state, and of that of a resumed run.

    Args:
        scans: the scans; what is learned, or loaded, becomes their state.
        config: the configuration tree.
    """

    def __init__(self, scans: Sequence[TrainingScan], config: Config) -> None:
        super().__init__()
        self._scans = scans
        self._config = config
        for number, scan in enumerate(scans):
            self.register_buffer(_PROBE.format(number), torch.view_as_real(scan.state.probe).clone())
            self.register_buffer(_SHIFT.format(number), torch.zeros((scan.tensors.size, 2)))
        self._given = [scan.state for scan in scans]
        self.register_load_state_dict_post_hook(_hand_out)  # type: ignore[no-untyped-call]

    def learn(self, generator: Generator | None, observer: Observer) -> bool:
        """One turn for every scan, from the object that ``generator`` makes of it (flat if None).

        Returns:
            Whether the turn came to its end. One that was cut short changes nothing: a run that goes on takes it anew.
        """
        states = [scan.state for scan in self._scans]
        for number, scan in enumerate(self._scans):
            if not observer.should_stop():
                states[number] = learn(scan.tensors, scan.state, generator, self._config, observer)
        if observer.should_stop():
            return False
        for number, (state, given) in enumerate(zip(states, self._given, strict=True)):
            self.get_buffer(_PROBE.format(number)).copy_(torch.view_as_real(state.probe))
            self.get_buffer(_SHIFT.format(number)).copy_(state.positions - given.positions)
        self.hand_out()
        return True

    def hand_out(self) -> None:
        """Give the scans what the buffers hold, so that a run that goes on has the same numbers to the last bit."""
        for number, (scan, given) in enumerate(zip(self._scans, self._given, strict=True)):
            probe = torch.view_as_complex(self.get_buffer(_PROBE.format(number)).to(scan.tensors.device, copy=True))
            shift = self.get_buffer(_SHIFT.format(number)).to(given.positions)
            scan.state = replace(given, probe=probe, positions=given.positions + shift)


def _hand_out(module: nn.Module, incompatible: object) -> None:
    del incompatible
    assert isinstance(module, Unknowns)  # noqa: S101 - registered by itself
    module.hand_out()


def first_probe(state: Mapping[str, Tensor]) -> Tensor | None:
    """The learned probe of the first scan, ``(M, H, W)`` complex64, in a state of the Lightning module, if there."""
    probe = state.get(f'{STATE_PREFIX}{_PROBE.format(0)}')
    return None if probe is None else torch.view_as_complex(probe.contiguous())


class UnknownsCallback(pl.Callback):
    """Takes the solver's turn before every epoch.

    Args:
        unknowns: what is learned.
        observer: may ask to stop.
        pause: called with the epoch whose turn was cut short, before its batches are made.
        resumed: epoch whose turn was taken before the run was stopped; None where none was.
    """

    def __init__(
        self, unknowns: Unknowns, observer: Observer, pause: Callable[[int], None], resumed: int | None = None
    ) -> None:
        self._unknowns = unknowns
        self._observer = observer
        self._pause = pause
        self._resumed = resumed

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Learn from all patterns; the data loader's iterator is made after this."""
        assert isinstance(pl_module, PtychoPINNModule)  # noqa: S101 - the Trainer of this package runs no other
        epoch = trainer.current_epoch
        if epoch == self._resumed:
            return
        if not self._unknowns.learn(None if epoch == 0 else pl_module.generator, self._observer):
            self._pause(epoch)


def learn(
    tensors: ScanTensors, state: ReconstructionState, generator: Generator | None, config: Config, observer: Observer
) -> ReconstructionState:
    """Improve the state of one scan from the object that ``generator`` makes of it, or from a transparent one if None.

    Returns:
        The state with the probe and the positions found; its object is that of ``state``.
    """
    found = state if generator is None else _predict(tensors, state, generator, config, observer)
    if config.training.intensity_scale_trainable and generator is not None:
        found = replace(found, probe=found.probe * _photon_scale(tensors, found, config.inference.batch_size))
    if not (config.training.probe_trainable or config.training.positions_trainable) or observer.should_stop():
        return replace(state, probe=found.probe)
    turn = _turn_of(config, first=generator is None)
    deviances: list[float] = []

    def listen(epoch: int, deviance: float) -> bool:
        deviances.append(deviance)
        # No step of the optimiser is done meanwhile: on a large scan this line says that the run is alive.
        if epoch % EPOCHS_PER_LINE == 0 and epoch < turn.refine_epochs:
            logger.info('%s: epoch %d of %d for its probe and positions.', tensors.scan.name, epoch, turn.refine_epochs)
        return observer.should_stop()

    with torch.no_grad():
        refined = Solver(tensors, found, turn, config.inference.batch_size).run(listen)
    moved = refined.positions.cpu().numpy() - tensors.scan.positions
    logger.info(
        '%s: deviance per pixel %.3f to %.3f; the learned positions are %.2f px (rms) from the given ones.',
        tensors.scan.name,
        deviances[0],
        deviances[-1],
        math.sqrt(float(np.square(moved).sum(axis=1).mean())),
    )
    return replace(state, probe=refined.probe, positions=refined.positions)


def _turn_of(config: Config, *, first: bool) -> RefinementConfig:
    """What the solver does in one turn."""
    return config.refinement.model_copy(
        update={
            'refine_epochs': FIRST_EPOCHS if first else TURN_EPOCHS,
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


def _predict(
    tensors: ScanTensors, state: ReconstructionState, generator: Generator, config: Config, observer: Observer
) -> ReconstructionState:
    """Return the state with the object of the network, in as many steps as it is trained for."""
    steps = min(steps_of(generator, 0), config.model.steps)
    settings = config.inference.model_copy(update={'window_size': 0})
    windows = windows_of(state, generator, config.data.group_size, settings)
    progress = ProgressReporter(_OnlyStop(observer), len(windows) * steps, tensors.scan.object_shape, 0)
    # A copy: it may be wanted on another device, and is not to notice that it was used.
    copied = deepcopy(generator).to(tensors.device).eval()
    return Predictor(tensors, state, copied, windows, steps, settings.batch_size, progress).predict()


class _OnlyStop(SilentObserver):
    """Hears of nothing; stops when the observer of the training stops."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def should_stop(self) -> bool:
        return self._observer.should_stop()


def _photon_scale(tensors: ScanTensors, state: ReconstructionState, batch_size: int) -> float:
    """Return the factor of the probe at which the simulated amplitudes fit the measured ones best."""
    product = square = 0.0
    with torch.no_grad():
        for chunk in np.array_split(np.arange(tensors.size), math.ceil(tensors.size / batch_size)):
            batch = tensors.batch(state, chunk)
            simulation = simulate(state.object_array[None], batch.probes, batch.patch_origins)
            model = simulation.amplitudes * batch.good_pixels
            product += float((model * batch.amplitudes).sum(dtype=torch.float64))
            square += float(model.square().sum(dtype=torch.float64))
    return product / square
