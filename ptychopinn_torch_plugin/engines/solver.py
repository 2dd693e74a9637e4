"""The solver: full-batch preconditioned momentum on the object, with probe, positions and frame intensities on the way.

Every epoch looks at all patterns, in batches only as far as memory asks for it, and moves every unknown once. What is
refined, and from which epoch on, is in the configuration.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..config import RefinementConfig
from ..data.tensors import ScanTensors
from ..physics.preconditioner import low_frequency_filter, precondition_low_frequencies
from ..physics.probe import power
from ..physics.probe_modes import add_modes, orthogonalised
from ..physics.residual import Experiment
from .gradients import Sums, Sweep, Unknowns, Wanted
from .optimizers import Momentum, PositionMotion
from .regularizers import TotalVariation
from .stitching import Stitched, cover

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


def likelihood_for(tensors: ScanTensors) -> str:
    """'poisson' for a faint scan, 'amplitude' for a bright one, which forgives more that no model knows of.

    Args:
        tensors: the scan; photons per good pixel and pattern (mean) decide, see ``FAINT_COUNTS``.
    """
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
        origin, (height, width) = tensors.extent(np.arange(tensors.scan.size))
        self.origin = origin - MARGIN_PX
        self.shape = (height + 2 * MARGIN_PX, width + 2 * MARGIN_PX)
        self._likelihood = config.likelihood if config.likelihood != 'auto' else likelihood_for(tensors)
        experiment = Experiment(tensors.good_pixels, tensors.phase, self._likelihood)
        is_fixed = not (config.refine_probe or config.refine_positions)
        self._sweep = Sweep(tensors, experiment, batch_size, is_fixed=is_fixed)
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
            wanted = self._wanted(epoch)
            sums = self._sweep.look(state, wanted)
            self._light = sums.photons
            if sums.deviance > before * (1 + 1e-4):
                object_motion.restart()
                probe_motion.restart()
            before = sums.deviance
            self._move_object(sums, object_motion)
            if wanted.probe:
                self._move_probe(sums, probe_motion)
            if wanted.positions:
                state.positions = self._inside(position_motion.step(state.positions, sums.position_change))
            if wanted.intensity:
                self._move_intensities(sums)
            if listen(epoch + 1, sums.deviance):
                break
        self._settle()
        return state

    def _start(self) -> Unknowns:
        tensors = self._tensors
        patch_origins = torch.from_numpy(tensors.patch_origins - self.origin).to(torch.float64)
        positions = (patch_origins + torch.from_numpy(tensors.subpixel_shifts)).float().to(self._device)
        probe = add_modes(tensors.probe, self._config.probe_modes)
        canvas = torch.ones(self.shape, dtype=torch.complex64, device=self._device)
        return Unknowns(canvas, probe, positions, torch.ones(len(positions), device=self._device))

    def _wanted(self, epoch: int) -> Wanted:
        config = self._config
        return Wanted(
            probe=config.refine_probe and epoch >= config.probe_start,
            positions=config.refine_positions and epoch >= config.positions_start,
            intensity=config.refine_intensity and epoch >= config.intensity_start,
        )

    def _move_object(self, sums: Sums, motion: Momentum) -> None:
        photons = sums.photons + FLOOR * sums.photons.max()
        before = self.unknowns.canvas
        direction = precondition_low_frequencies((sums.direction / photons)[None], before[None], self._gain)[0]
        self.unknowns.canvas = self._prior(before + motion.step(OBJECT_STEP * direction), photons / OBJECT_STEP)
        motion.moved(self.unknowns.canvas - before)

    def _move_probe(self, sums: Sums, motion: Momentum) -> None:
        direction = torch.fft.ifft2(sums.probe_spectrum) / (sums.transparency + FLOOR * sums.transparency.max())
        self.unknowns.probe = self.unknowns.probe + motion.step(PROBE_STEP * direction)

    def _move_intensities(self, sums: Sums) -> None:
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
