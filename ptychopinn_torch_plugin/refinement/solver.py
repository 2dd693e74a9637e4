"""The solver: full-batch preconditioned momentum on the object, with probe, positions and frame intensities on the way.

Every epoch looks at all patterns, in batches only as far as memory asks for it, and moves every unknown once. What is
refined, and from which epoch on, is in the configuration.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..config import RefinementConfig
from ..physics.likelihood import DEVIANCES
from ..physics.probe import power
from ..physics.residual import Batch, Experiment, object_change, position_change, probe_change, residual_of
from ..physics.slow_phase import low_frequency_filter, push_slow_phases
from ..stitching import Stitched, cover
from ..tensors import CACHE_BYTES, ScanTensors
from .modes import add_modes, orthogonalised
from .motion import Momentum, PositionMotion
from .prior import TotalVariation

logger = logging.getLogger(__name__)

MARGIN_PX = 8
"""How far the canvas reaches beyond the frames: refined positions may move that much."""
FLOOR = 0.05
"""Regularisation of the preconditioners, relative to their largest value."""
OBJECT_STEP = 1.2
PROBE_STEP = 1.0
SLOW_PHASE_GAIN = 10.0
"""Stable over many epochs only together with the restarts of the momentum."""

FAINT_COUNTS = 20.0
"""Mean counts per measured pixel below which the Poisson likelihood is taken: roots of few counts are biased."""

Listener = Callable[[int, float], bool]
"""Told the number of the epoch (from 1) and its deviance; True ends the refinement."""


@dataclass(eq=False)
class Unknowns:
    """The state of a refinement."""

    canvas: Tensor
    """Object, ``(h, w)`` complex64."""
    probe: Tensor
    """Modes, ``(M, H, W)`` complex64."""
    positions: Tensor
    """First pixel (y, x) of each frame on the canvas, with its fraction, ``(n, 2)`` float32."""
    intensities: Tensor
    """Photons of each frame relative to the mean, ``(n,)`` float32."""


@dataclass(frozen=True, eq=False)
class _Sums:
    """What one look at all patterns gives."""

    direction: Tensor
    photons: Tensor
    probe_spectrum: Tensor
    transparency: Tensor
    position_change: Tensor
    intensity_ratio: Tensor
    deviance: float


def likelihood_for(tensors: ScanTensors) -> str:
    """'poisson' for a faint scan, 'amplitude' for a bright one, which forgives more that no model knows of."""
    photons = float(power(tensors.probe).sum())
    return 'poisson' if photons / float(tensors.good_pixels.sum()) < FAINT_COUNTS else 'amplitude'


class Solver:
    """Refines one scan.

    Args:
        tensors: the scan on its device, with the probe to start from.
        config: what is refined, from when, by which likelihood.
        batch_size: patterns in memory at a time; no effect on the result.
    """

    def __init__(self, tensors: ScanTensors, config: RefinementConfig, batch_size: int) -> None:
        self._tensors = tensors
        self._config = config
        self._device = tensors.device
        everything = np.arange(tensors.scan.size)
        origin, (height, width) = tensors.extent(everything)
        self.origin = origin - MARGIN_PX
        self.shape = (height + 2 * MARGIN_PX, width + 2 * MARGIN_PX)
        self._batches = np.array_split(everything, max(1, math.ceil(tensors.scan.size / batch_size)))
        frame_bytes = 4 * math.prod(tensors.scan.pattern_shape)
        self._kept: dict[int, Tensor] | None = {} if tensors.scan.size * frame_bytes <= CACHE_BYTES else None
        self._likelihood = config.likelihood if config.likelihood != 'auto' else likelihood_for(tensors)
        self._experiment = Experiment(tensors.good_pixels, tensors.phase, self._likelihood)
        self._gain = low_frequency_filter(self.shape, self._device, SLOW_PHASE_GAIN)
        self.unknowns = self._start()
        self._given = self.unknowns.positions.clone()
        self._light = torch.ones(self.shape, device=self._device)
        self._prior = TotalVariation(config.smoothing, self.unknowns.canvas)

    def start_from(self, canvas: Tensor, origin: np.ndarray) -> None:
        """Begin with an object that is known already, ``(h, w)`` complex64 with its first pixel at ``origin``."""
        y, x = (int(value) for value in origin - self.origin)
        self.unknowns.canvas[y : y + canvas.shape[0], x : x + canvas.shape[1]] = canvas

    def run(self, listen: Listener) -> Unknowns:
        """Refine for the configured number of epochs, or until ``listen`` says so, and return the unknowns.

        The probe comes back in orthogonal modes, with the power of the one that came in.
        """
        state, config = self.unknowns, self._config
        object_motion, probe_motion = Momentum(state.canvas), Momentum(state.probe)
        position_motion = PositionMotion(self._given, config.refine_epochs - config.positions_start)
        before = math.inf
        for epoch in range(config.refine_epochs):
            sums = self._look(epoch)
            self._light = sums.photons
            if sums.deviance > before * (1 + 1e-4):
                object_motion.restart()
                probe_motion.restart()
            before = sums.deviance
            self._move_object(sums, object_motion)
            if self._refines('probe', epoch):
                self._move_probe(sums, probe_motion)
            if self._refines('positions', epoch):
                state.positions = self._inside(position_motion.step(state.positions, sums.position_change))
            if self._refines('intensity', epoch):
                self._move_intensities(sums)
            if listen(epoch + 1, sums.deviance):
                break
        self._settle()
        return state

    def _start(self) -> Unknowns:
        tensors = self._tensors
        corners = torch.from_numpy(tensors.corners - self.origin).to(torch.float64)
        positions = (corners + torch.from_numpy(tensors.remainders)).float().to(self._device)
        probe = add_modes(tensors.probe, self._config.probe_modes)
        canvas = torch.ones(self.shape, dtype=torch.complex64, device=self._device)
        return Unknowns(canvas, probe, positions, torch.ones(len(positions), device=self._device))

    def _refines(self, what: str, epoch: int) -> bool:
        config = self._config
        wanted = {
            'probe': (config.refine_probe, config.probe_start),
            'positions': (config.refine_positions, config.positions_start),
            'intensity': (config.refine_intensity, config.intensity_start),
        }
        switch, start = wanted[what]
        return switch and epoch >= start

    def _look(self, epoch: int) -> _Sums:
        """Go through all patterns once."""
        state = self.unknowns
        direction, photons = torch.zeros_like(state.canvas), torch.zeros(self.shape, device=self._device)
        spectrum, transparency = torch.zeros_like(state.probe), torch.zeros_like(state.probe[0].real)
        change, ratio = torch.zeros_like(state.positions), torch.ones_like(state.intensities)
        deviance = 0.0
        for indices, batch in self._gather():
            residual = residual_of(state.canvas, state.probe, batch, self._experiment)
            part, light = object_change(residual, batch.corners, self.shape)
            direction += part
            photons += light
            if self._refines('probe', epoch):
                part, light = probe_change(residual, self._experiment.phase)
                spectrum += part
                transparency += light
            if self._refines('positions', epoch):
                change[indices] = position_change(residual, self._experiment.phase)
            if self._refines('intensity', epoch):
                ratio[indices] = self._intensity_ratio(batch.amplitudes, residual.amplitudes)
            share = len(indices) / self._tensors.scan.size
            judge = DEVIANCES[self._likelihood]
            deviance += share * float(judge(residual.amplitudes, batch.amplitudes, self._experiment.good_pixels))
        return _Sums(direction, photons, spectrum, transparency, change, ratio, deviance)

    def _gather(self) -> Iterator[tuple[Tensor, Batch]]:
        state = self.unknowns
        corners = state.positions.floor()
        for number, indices in enumerate(self._batches):
            chosen = torch.from_numpy(indices).to(self._device)
            # The intensities are divided out of the data instead of multiplied onto the model: nothing else changes.
            amplitudes = self._amplitudes(number, indices) / state.intensities[chosen].sqrt()[:, None, None]
            first = corners[chosen]
            yield chosen, Batch(amplitudes, first.long(), state.positions[chosen] - first)

    def _amplitudes(self, number: int, indices: np.ndarray) -> Tensor:
        if self._kept is None:
            return self._tensors.amplitudes(indices)
        if number not in self._kept:
            self._kept[number] = self._tensors.amplitudes(indices)
        return self._kept[number]

    def _intensity_ratio(self, measured: Tensor, model: Tensor) -> Tensor:
        """Power of each frame over what the model expects, ``(C,)``."""
        good = self._experiment.good_pixels
        return (measured.square() * good).sum(dim=(-2, -1)) / (model.square() * good).sum(dim=(-2, -1)).clamp_min(1e-12)

    def _move_object(self, sums: _Sums, motion: Momentum) -> None:
        photons = sums.photons + FLOOR * sums.photons.max()
        before = self.unknowns.canvas
        direction = push_slow_phases((sums.direction / photons)[None], before[None], self._gain)[0]
        self.unknowns.canvas = self._prior(before + motion.step(OBJECT_STEP * direction), photons / OBJECT_STEP)
        motion.moved(self.unknowns.canvas - before)

    def _move_probe(self, sums: _Sums, motion: Momentum) -> None:
        direction = torch.fft.ifft2(sums.probe_spectrum) / (sums.transparency + FLOOR * sums.transparency.max())
        self.unknowns.probe = self.unknowns.probe + motion.step(PROBE_STEP * direction)

    def _move_intensities(self, sums: _Sums) -> None:
        intensities = self.unknowns.intensities * sums.intensity_ratio
        self.unknowns.intensities = intensities / intensities.mean()

    def _inside(self, positions: Tensor) -> Tensor:
        """Keep every frame on the canvas."""
        limit = torch.tensor(self.shape, device=self._device) - torch.tensor(
            self._tensors.scan.pattern_shape, device=self._device
        )
        return torch.minimum(positions.clamp_min(0.0), limit - 1e-3)

    def _settle(self) -> None:
        """Give the probe back its photons, and put its modes in order.

        Scale, a common translation and a linear phase ramp pass freely between probe and object. Only the scale is put
        back: where the probe came in off centre, or tilted against the detector, the others are what was mended.
        """
        state = self.unknowns
        if self._config.refine_probe:
            factor = math.sqrt(float(power(self._tensors.probe).sum() / power(state.probe).sum()))
            state.probe = orthogonalised(state.probe * factor)
            state.canvas = state.canvas / factor

    def stitched(self) -> Stitched:
        """The object so far, 1 where hardly any photon went by the last look at the patterns."""
        return cover(self.unknowns.canvas, self._light)

    @property
    def displacements(self) -> Tensor:
        """How far the positions have moved, ``(n, 2)`` float32, (y, x) in pixels."""
        return self.unknowns.positions - self._given
