"""The solver: maximum-likelihood refinement of object, probe, positions and frame intensities.

Every epoch computes the gradients of the deviance ``D`` over all patterns at once, then updates each quantity once.
With the object update ``U``, the illumination ``W = sum_jm |P_jm|^2``, the transmittance ``T = sum_j s_j |O_j|^2``, the
heavy-ball operator ``V`` (:mod:`.optimizers`), the low-frequency preconditioner ``L``
(:mod:`ptychopinn_torch_plugin.physics.preconditioner`) and the regulariser ``R``,
total variation and, on faint and sparse scans, cosine blocks (:mod:`.regularizers`)::

    O   <- R( O + V[1.2 L(U / (W + 0.05 max W))] )
    P_m <- P_m + V[F^-1(sum_j S_jm) / (T + 0.05 max T)]
    r_j <- Adam on the Gauss-Newton step of position j
    s_j <- s_j sum(n_j) / sum(I_j),  then divided by their mean

The gradients are those of maximum likelihood (P. Thibault & M. Guizar-Sicairos, New J. Phys. 14, 063004 (2012)); the
preconditioners are the illumination functions of M. Odstrcil et al., Opt. Express 26, 3108 (2018), regularised as
written. When ``D`` increases, the momentum restarts. The low-frequency term and the regulariser are applied to the
preconditioned direction; this has no derivation from one objective and was chosen by measured quality
(:doc:`/benchmarks`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace

import torch
from scipy.fft import next_fast_len
from torch import Tensor

from ..config import AUTOMATIC_SMOOTHING, RefinementConfig
from ..data.tensors import ScanTensors, extent_of, patch_origins_of
from ..models.physics_step import OBJECT_STEP, regularise
from ..physics.forward import power
from ..physics.kernels.sums import Gradients, RefinedQuantities
from ..physics.patches import extract_window
from ..physics.preconditioner import low_frequency_filter
from ..physics.probe_modes import add_modes, orthogonalise
from ..types import ReconstructionState, Smoothing
from .gradients import GradientAccumulation
from .optimizers import HeavyBall, PositionOptimizer
from .regularizers import Regularizer, regularizer_for
from .smoothing_rule import mean_overlap, photons_per_lit_pixel, smoothing_for
from .stitching import mask_object

logger = logging.getLogger(__name__)

MARGIN_PX = 8
"""Pixels by which the object array extends beyond the patches: refined positions may move that far."""
RESTART_TOLERANCE = 1e-4
"""Relative increase of the deviance above which the momentum restarts; smaller ones are rounding."""

FAINT_COUNTS = 20.0
"""Mean counts per measured pixel below which the Poisson likelihood is chosen: roots of few counts are biased."""

EpochListener = Callable[[int, float], bool]
"""Called with the number of the epoch (from 1) and its deviance; True ends the refinement."""


def likelihood_for(tensors: ScanTensors, probe: Tensor) -> str:
    """Return 'poisson' for a faint scan and 'amplitude' for a bright one, which is less sensitive to model errors.

    Args:
        tensors: the scan.
        probe: modes, ``(M, H, W)`` complex; its photons per measured pixel decide, see ``FAINT_COUNTS``.
    """
    photons = float(power(probe).sum())
    return 'poisson' if photons / float(tensors.good_pixels.sum()) < FAINT_COUNTS else 'amplitude'


class Solver:
    """Refines one scan.

    Args:
        tensors: the scan on its device.
        state: the state to start from.
        config: the refined quantities, their first epochs, and the likelihood.
        batch_size: patterns in memory at a time; no effect on the result.
    """

    def __init__(
        self, tensors: ScanTensors, state: ReconstructionState, config: RefinementConfig, batch_size: int
    ) -> None:
        self._tensors = tensors
        self._config = config
        self._start = state
        self._state = state = _with_margin(state, add_modes(state.probe, config.probe_modes))
        chosen = config.likelihood != 'auto'
        self._gradients = GradientAccumulation(
            tensors,
            len(state.probe),
            config.likelihood if chosen else likelihood_for(tensors, state.probe),
            batch_size,
            is_fixed=not (config.refine_probe or config.refine_positions or config.refine_intensity),
        )
        self._filter = low_frequency_filter(state.object_shape, tensors.device)
        self._photons = torch.ones(state.object_shape, device=tensors.device)
        self._regularizer: Regularizer | None = None
        self.smoothing = Smoothing()
        """How the object is smoothed; not at all before the first epoch."""

    def run(self, listen: EpochListener) -> ReconstructionState:
        """Refine for the configured number of epochs, or until ``listen`` returns True.

        Returns:
            The refined state; its probe is in orthogonal modes, with the power of the initial one.
        """
        config = self._config
        object_momentum, probe_momentum = HeavyBall(self._state.object_array), HeavyBall(self._state.probe)
        position_optimizer = PositionOptimizer(self._start.positions, config.refine_epochs - config.positions_start)
        previous = math.inf
        for epoch in range(config.refine_epochs):
            refined = self._refined_in(epoch)
            gradients = self._gradients.compute(self._state, refined)
            self._photons = gradients.illumination
            deviance = float(gradients.deviance)
            if deviance > previous * (1 + RESTART_TOLERANCE):
                object_momentum.restart()
                probe_momentum.restart()
            previous = deviance
            state = replace(self._state, object_array=self._object_step(gradients, object_momentum))
            if refined.probe:
                state = replace(state, probe=self._probe_step(gradients, probe_momentum))
            if refined.positions:
                moved = position_optimizer.step(state.positions, gradients.position_steps)
                state = replace(state, positions=self._inside(moved))
            if refined.intensities:
                intensities = state.intensities * gradients.intensity_ratios
                state = replace(state, intensities=intensities / intensities.mean())
            self._state = state
            if listen(epoch + 1, deviance):
                break
        self._state = replace(self._state, object_array=self._smoothed_object())
        self._regularizer = None  # its result is in the state now
        self._normalise_probe()
        return self.state

    @property
    def state(self) -> ReconstructionState:
        """The present state; its object is 1 where the last epoch put hardly any photon."""
        return replace(self._state, object_array=mask_object(self._smoothed_object(), self._photons))

    def _smoothed_object(self) -> Tensor:
        object_array = self._state.object_array
        return object_array if self._regularizer is None else self._regularizer.result(object_array)

    def _refined_in(self, epoch: int) -> RefinedQuantities:
        config = self._config
        return RefinedQuantities(
            probe=config.refine_probe and epoch >= config.probe_start,
            positions=config.refine_positions and epoch >= config.positions_start,
            intensities=config.refine_intensity and epoch >= config.intensity_start,
        )

    def _object_step(self, gradients: Gradients, momentum: HeavyBall) -> Tensor:
        photons = regularise(gradients.illumination)
        before = self._state.object_array
        precondition = self._tensors.kernels.precondition
        update = precondition(gradients.object_update[None], photons.reciprocal()[None], before[None], self._filter)[0]
        if self._regularizer is None:
            self.smoothing = self._chosen_smoothing(gradients.illumination)
            self._regularizer = regularizer_for(self.smoothing, before, self._tensors.kernels)
        after = self._regularizer(before + momentum.step(OBJECT_STEP * update), photons / OBJECT_STEP)
        momentum.replace_velocity(after - before)
        return after

    def _chosen_smoothing(self, illumination: Tensor) -> Smoothing:
        """Return the smoothing as configured, or by the rule for dose and overlap."""
        if self._config.smoothing != AUTOMATIC_SMOOTHING:
            return Smoothing(photons=self._config.smoothing)
        photons, intensity = illumination.cpu().numpy(), power(self._start.probe).cpu().numpy()
        lit, overlap = photons_per_lit_pixel(photons), mean_overlap(photons, intensity, self._tensors.size)
        smoothing = smoothing_for(lit, overlap)
        logger.debug(
            'Smoothing: %s, from %.3g photons and %.2g positions on a typical pixel of the object.',
            smoothing,
            lit,
            overlap,
        )
        return smoothing

    def _probe_step(self, gradients: Gradients, momentum: HeavyBall) -> Tensor:
        update = torch.fft.ifft2(gradients.probe_spectrum) / regularise(gradients.transmittance)
        return self._state.probe + momentum.step(update)

    def _inside(self, positions: Tensor) -> Tensor:
        """Limit positions so that every patch lies inside the object array."""
        sides = positions.new_tensor(self._tensors.pattern_shape)
        first = positions.new_tensor(self._state.origin) + (sides - 1) / 2
        last = first + positions.new_tensor(self._state.object_shape) - sides - 1e-3
        return torch.minimum(torch.maximum(positions, first), last)

    def _normalise_probe(self) -> None:
        """Restore the power of the initial probe, and orthogonalise the modes.

        A scale, a common translation and a linear phase ramp may pass between probe and object without changing any
        pattern. Only the scale is restored: a probe that was given off centre or tilted is corrected by the others.
        """
        if self._config.refine_probe:
            state = self._state
            factor = math.sqrt(float(power(self._start.probe).sum() / power(state.probe).sum()))
            self._state = replace(
                state, object_array=state.object_array / factor, probe=orthogonalise(state.probe * factor)
            )


def final_deviance(solver: Solver, should_stop: Callable[[], bool] = lambda: False) -> float:
    """Run ``solver`` until its last epoch, or until ``should_stop``, and return the last deviance."""
    deviances: list[float] = []

    def listen(_epoch: int, deviance: float) -> bool:
        deviances.append(deviance)
        return should_stop()

    with torch.inference_mode():
        solver.run(listen)
    return deviances[-1]


def _with_margin(state: ReconstructionState, probe: Tensor) -> ReconstructionState:
    """Return ``state`` with ``probe``, and an object array that extends ``MARGIN_PX`` at least beyond every patch.

    Its sides are products of small primes: other transforms take several times as long.
    """
    origin, shape = extent_of(patch_origins_of(state), (probe.shape[-2], probe.shape[-1]))
    first = origin[0] - MARGIN_PX, origin[1] - MARGIN_PX
    offset = first[0] - state.origin[0], first[1] - state.origin[1]
    height, width = (next_fast_len(side + 2 * MARGIN_PX, real=True) for side in shape)
    object_array = extract_window(state.object_array, offset, (height, width))
    return replace(state, object_array=object_array, origin=first, probe=probe)
