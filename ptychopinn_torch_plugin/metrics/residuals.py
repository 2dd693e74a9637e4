"""Metrics of a reconstruction from the patterns alone: residuals, uncertainty, coverage, in one pass over the scan.

With expected counts ``I_j``, measured counts ``n_j`` and the best global scale ``c`` of the amplitudes, the R-factor is
``sum |sqrt(n) - c sqrt(I)| / sum sqrt(n)``. Residuals for the statistics are ``r_j = sqrt(n_j) - E sqrt(n_j)``, the
expectation over photon noise (:mod:`..physics.photon_noise`).

The uncertainty of a pixel ``x`` of the object, for photon noise alone, is the inverse of the diagonal of the Fisher
information, with the phases of different positions taken as independent::

    1 / variance(x) = sum_jm |P_jm(x)|^2 f_jm,   f_jm = mean over detector pixels of |psi_jm|^2 / I_j

(the square root of a count has the variance 1/4 whatever its mean, and an amplitude determines one of the two real
unknowns of a wave, so a pixel with ``W`` photons has the variance ``1/W``). Model errors increase it: with the residual
propagated back to the exit wave, ``chi_jm = F^-1(psi_jm r_j / sqrt(I_j))``, position ``j`` contributes
``g_j(x) = sum_m P_jm(x)* chi_jm(x)`` to the object gradient, and photon noise alone would give::

    E |g_j(x)|^2 = sum_m |P_jm(x)|^2 mean(Var(sqrt n_j) |psi_jm|^2 / I_j)

The ratio of the sums over ``j`` of the measured and the expected ``|g_j|^2``, where above 1, multiplies the variance
(sandwich estimator, P. J. Huber, Proc. 5th Berkeley Symp. 1, 221 (1967)).

Smoothing (total variation and cosine blocks) removes a part of that noise and adds a bias. Where the refinement used
it, both are measured on the result ``O`` itself (parametric bootstrap, B. Efron & R. Tibshirani, Stat. Sci. 1, 54
(1986)): noise ``e`` of this variance is added, and the regulariser ``R`` of the refinement is applied again::

    variance(x) <- mean over draws of |R(O + e)(x) - O(x)|^2

This takes one application of the operator for the whole refinement, and no error of missing epochs is in it. After a
refinement from the start, :mod:`ptychopinn_torch_plugin.engines.uncertainty_calibration` measures the ratio of actual
to predicted error on patterns that are drawn from the result, and multiplies the standard deviation by it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..data.sharding import processes
from ..data.tensors import ScanTensors, extent_of, patch_origins_of
from ..models.physics_step import regularise
from ..physics.cosine_shrinkage import CosineShrinkage
from ..physics.forward import PatternBatch, simulate
from ..physics.kernels.sums import AmplitudeScales, ResidualSums
from ..physics.patches import extract_window, split_positions
from ..physics.photon_noise import PhotonNoise
from ..physics.probe import illumination, is_illuminated
from ..types import ReconstructionMetrics, ReconstructionState, Smoothing

SCALE_POSITIONS = 64
"""Positions that the best scale is computed from, evenly spread: more would not change the R-factor."""
SCALE_BATCH = 16
"""Positions in one batch of that computation."""
SCALE_RANGE = 0.2
"""Largest relative difference between the scale of the smallest R-factor and that of least squares."""
SMOOTHING_RADIUS_PX = 2
"""Squared gradients are averaged over this radius, because few positions contribute to one pixel."""
WELL_LIT = 0.5
"""Share of the mean illumination above which a pixel counts in the median uncertainty."""
BOOTSTRAP_DRAWS = 4
BOOTSTRAP_STEPS = 40
"""Dual steps of each proximal point; it starts from zero."""
BOOTSTRAP_SPINS = 4
"""Places of the cosine blocks that an estimate is averaged over."""
BOOTSTRAP_SEED = 0
NOT_SMOOTHED = Smoothing()


def measure(
    tensors: ScanTensors, state: ReconstructionState, batch_size: int, smoothing: Smoothing = NOT_SMOOTHED
) -> ReconstructionMetrics:
    """Compare a reconstruction with the patterns it was made from, in one pass over them.

    Args:
        tensors: the scan on its device.
        state: the reconstruction.
        batch_size: patterns in memory at a time; no effect on the result.
        smoothing: how the object was smoothed while it was refined.

    Returns:
        Values and maps on the object grid and the detector, without the comparison of half scans.
    """
    with torch.inference_mode():
        state = _covering_all_patches(state)
        best, photons = _scales(tensors, state)
        scales = AmplitudeScales(best, photons, PhotonNoise(best / photons, tensors.device))
        sums = ResidualSums.zeros(state.object_shape, tensors.pattern_shape, tensors.device)
        for batch in _batches(tensors, state, np.array(processes().share(tensors.size)), batch_size):
            tensors.kernels.add_residuals(state.object_array, batch, scales, sums)
        processes().sum([sums.maps, sums.detector, sums.totals])
        return _Measures(tensors, state, scales, sums, smoothing).metrics()


def illuminated_pixels(tensors: ScanTensors, state: ReconstructionState) -> npt.NDArray[np.bool_]:
    """Return where the object was illuminated, ``(h, w)`` on the scan's grid, with the memory of one pattern.

    The same pixels as ``photons_map > 0`` of :func:`measure`, where that needs too much memory.
    """
    with torch.inference_mode():
        state = _covering_all_patches(state)
        photons = torch.zeros(state.object_shape, device=tensors.device)
        for index in range(tensors.size):
            batch = tensors.batch(state, np.array([index]))
            photons += illumination(batch.probes, batch.patch_origins, state.object_shape)[0]
        return _on_grid(is_illuminated(photons), state, tensors.scan.object_shape).astype(np.bool_)


class _Measures:
    """What the sums over all patterns say."""

    def __init__(
        self,
        tensors: ScanTensors,
        state: ReconstructionState,
        scales: AmplitudeScales,
        sums: ResidualSums,
        smoothing: Smoothing,
    ) -> None:
        self._tensors = tensors
        self._state = state
        self._scales = scales
        self._smoothing = smoothing
        self._photons, self._squares, self._difference_map, self._measured_map = sums.maps[:4]
        self._gradients, self._noise_gradients, self._information = sums.maps[4:]
        self._detector_difference, self._detector_measured = sums.detector
        self._noise, self._squared_residual, self._expected_square = sums.totals.tolist()

    def metrics(self) -> ReconstructionMetrics:
        """Return values and maps on the object grid."""
        photons = self._on_grid(self._photons * self._scales.photons**2)
        coverage = self._on_grid(is_illuminated(self._photons)).astype(np.bool_)
        photons[~coverage] = 0.0
        squares = self._on_grid(self._squares * self._scales.photons**4)
        uncertainty = np.where(coverage, self._on_grid(self._uncertainty()), np.nan).astype(np.float32)
        lit = photons > WELL_LIT * photons[coverage].mean(dtype=np.float64) if coverage.any() else coverage
        overlap = (photons[coverage] ** 3 / squares[coverage]).sum(dtype=np.float64)
        measured = float(self._detector_measured.sum(dtype=torch.float64))
        detector = _ratio(self._detector_difference, self._detector_measured)
        expected = self._expected_square
        return ReconstructionMetrics(
            r_factor=float(self._detector_difference.sum(dtype=torch.float64)) / measured,
            noise_r_factor=self._noise / measured,
            reduced_chi_square=self._squared_residual / expected if expected > 0 else math.nan,
            scale=self._scales.best,
            covered_share=float(coverage.mean(dtype=np.float64)),
            overlap=float(overlap / photons.sum(dtype=np.float64)) if coverage.any() else 0.0,
            uncertainty=float(np.median(uncertainty[lit])) if lit.any() else math.nan,
            object_r_map=np.where(coverage, self._on_grid(_ratio(self._difference_map, self._measured_map)), np.nan),
            detector_r_map=torch.fft.fftshift(
                torch.where(self._tensors.good_pixels > 0, detector, torch.nan)
            ).cpu().numpy(),
            uncertainty_map=uncertainty,
            photons_map=photons,
            frc=None,
        )  # fmt: skip

    def _uncertainty(self) -> Tensor:
        inflation = _smoothed(self._gradients) / _smoothed(self._noise_gradients).clamp_min(1e-30)
        variance = inflation.clamp_min(1.0) / self._information.clamp_min(1e-30)
        return (self._after_smoothing(variance) if self._smoothing != NOT_SMOOTHED else variance).sqrt()

    def _after_smoothing(self, variance: Tensor) -> Tensor:
        """Return the variance that the smoothing leaves of ``variance``, its bias included, ``(h, w)`` real."""
        object_array = self._state.object_array
        deviation = variance.clamp_max(1.0).sqrt()
        generator = torch.Generator().manual_seed(BOOTSTRAP_SEED)
        squared = torch.zeros_like(variance)
        for _ in range(BOOTSTRAP_DRAWS):
            noise = torch.randn(object_array.shape, dtype=object_array.dtype, generator=generator)
            error = self._smooth(object_array + deviation * noise.to(object_array.device)) - object_array
            squared += error.real.square() + error.imag.square()
        return _smoothed(squared) / BOOTSTRAP_DRAWS

    def _smooth(self, noisy: Tensor) -> Tensor:
        photons, smoothing = regularise(self._photons), self._smoothing
        duals = torch.zeros_like(noisy), torch.zeros_like(noisy)
        flat = self._tensors.kernels.proximal_point(noisy, smoothing.photons / photons, *duals, BOOTSTRAP_STEPS)
        if not smoothing.cosine_share:
            return flat
        shrink = CosineShrinkage(smoothing.threshold)
        blocks = torch.stack([shrink(noisy, photons) for _ in range(BOOTSTRAP_SPINS)]).mean(dim=0)
        return flat + smoothing.cosine_share * (blocks - flat)

    def _on_grid(self, image: Tensor) -> npt.NDArray[np.float32]:
        return _on_grid(image, self._state, self._tensors.scan.object_shape)


def _on_grid(image: Tensor, state: ReconstructionState, shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Return an image of the state's object array on the scan's grid of this shape, 0 outside."""
    y, x = state.origin
    grid: npt.NDArray[np.float32] = extract_window(image.to(torch.float32), (-y, -x), shape, fill=0.0).cpu().numpy()
    return grid


def _covering_all_patches(state: ReconstructionState) -> ReconstructionState:
    """Return ``state`` with an object array that holds every patch, extended by 1 where it did not."""
    patch_shape = (state.probe.shape[-2], state.probe.shape[-1])
    (top, left), (height, width) = extent_of(patch_origins_of(state), patch_shape)
    first = min(top, state.origin[0]), min(left, state.origin[1])
    bottom = max(top + height, state.origin[0] + state.object_shape[0])
    right = max(left + width, state.origin[1] + state.object_shape[1])
    offset = first[0] - state.origin[0], first[1] - state.origin[1]
    window = extract_window(state.object_array, offset, (bottom - first[0], right - first[1]))
    return replace(state, object_array=window, origin=first)


def _batches(
    tensors: ScanTensors, state: ReconstructionState, indices: npt.NDArray[np.integer], batch_size: int
) -> Iterator[PatternBatch]:
    """Yield the patterns ``indices`` in batches, on a CPU in batches that fit its cache."""
    if tensors.device.type == 'cpu':
        batch_size = min(batch_size, max(1, tensors.kernels.batch_bytes // (8 * state.probe.numel())))
    origins, shifts = split_positions(state.positions, tensors.pattern_shape)
    origins = origins - torch.tensor(state.origin, device=origins.device)
    for part in np.array_split(indices, math.ceil(len(indices) / batch_size)) if len(indices) else []:
        chosen = torch.from_numpy(part).to(tensors.device)
        probes = tensors.kernels.shift_probes(state.probe, tensors.phase, shifts[chosen], state.intensities[chosen])
        yield PatternBatch(tensors.amplitudes(part)[None], probes[None], origins[chosen][None], tensors.good_pixels)


def _scales(tensors: ScanTensors, state: ReconstructionState) -> tuple[float, float]:
    """Return the factors of the expected amplitudes of the smallest R-factor, and of the measured number of photons.

    ``sum |m - c s|`` is smallest at the median of ``m / s`` weighted by ``s``. At low dose that median lies below the
    scale of the photons, so it is limited to 20 % around that of least squares.
    """
    size = tensors.size
    chosen = np.unique(np.linspace(0, size - 1, min(size, SCALE_POSITIONS)).astype(np.int64))
    measured, simulated = [], []
    good = tensors.good_pixels.flatten() > 0
    for batch in _batches(tensors, state, chosen, SCALE_BATCH):
        simulation = simulate(state.object_array[None], batch.probes, batch.patch_origins)
        measured.append(batch.amplitudes[0].flatten(1)[:, good].flatten())
        simulated.append(simulation.amplitudes[0].flatten(1)[:, good].flatten())
    m, s = torch.cat(measured), torch.cat(simulated)
    expected = float(s.square().sum(dtype=torch.float64))
    squares = float((m * s).sum(dtype=torch.float64)) / expected
    least, most = (1 - SCALE_RANGE) * squares, (1 + SCALE_RANGE) * squares
    scale = min(max(_weighted_median(m / s, s, least, most), least), most)
    return scale, math.sqrt(float(m.square().sum(dtype=torch.float64)) / expected)


def _weighted_median(values: Tensor, weights: Tensor, least: float, most: float) -> float:
    """Return the median of ``values`` ``(n,)``; a median outside ``least`` to ``most`` is replaced by that limit.

    Only values between the limits are sorted.
    """
    below, inside = values < least, (values >= least) & (values <= most)
    half = 0.5 * float(weights.sum(dtype=torch.float64))
    before = float(weights[below].sum(dtype=torch.float64))
    if before >= half:
        return least
    ordered, order = values[inside].sort()
    found = int(torch.searchsorted(weights[inside][order].cpu().to(torch.float64).cumsum(0), half - before))
    return float(ordered[found]) if found < len(ordered) else most


def _smoothed(image: Tensor) -> Tensor:
    """Return the mean over a square of ``2 SMOOTHING_RADIUS_PX + 1`` pixels."""
    side = 2 * SMOOTHING_RADIUS_PX + 1
    mean: Tensor = torch.nn.functional.avg_pool2d(image[None, None], side, stride=1, padding=SMOOTHING_RADIUS_PX)[0, 0]
    return mean


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    return torch.where(denominator > 0, numerator / denominator.clamp_min(1e-30), torch.nan)
