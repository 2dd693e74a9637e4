"""Metrics of a reconstruction from the patterns alone: residuals, uncertainty, coverage, in one pass over the scan.

With expected counts ``I_j``, measured counts ``n_j`` and the best global scale ``c`` of the amplitudes, the R-factor is
``sum |sqrt(n) - c sqrt(I)| / sum sqrt(n)``. Residuals for the statistics are ``r_j = sqrt(n_j) - E sqrt(n_j)``, the
expectation over photon noise (:mod:`.photon_noise`).

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

Total variation removes a part of that noise and adds a bias. Where the refinement used it, both are measured on the
result ``O`` itself (parametric bootstrap, B. Efron & R. Tibshirani, Stat. Sci. 1, 54 (1986)): noise ``e`` of this
variance is added, and the proximal operator of the refinement is applied again::

    variance(x) <- mean over draws of |prox(O + e)(x) - O(x)|^2
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..data.sharding import processes
from ..data.tensors import ScanTensors, extent_of, patch_origins_of
from ..models.physics_step import regularise
from ..physics.forward import PatternBatch, Simulation, patch_updates, power, simulate
from ..physics.patches import accumulate_patches, extract_window
from ..physics.probe import illumination, is_illuminated
from ..physics.propagation import backpropagate
from ..types import ReconstructionMetrics, ReconstructionState
from .photon_noise import PhotonNoise

SCALE_POSITIONS = 64
"""Positions that the best scale is computed from, evenly spread: more would not change the R-factor."""
SCALE_RANGE = 0.2
"""Largest relative difference between the scale of the smallest R-factor and that of least squares."""
SMOOTHING_RADIUS_PX = 2
"""Squared gradients are averaged over this radius, because few positions contribute to one pixel."""
WELL_LIT = 0.5
"""Share of the mean illumination above which a pixel counts in the median uncertainty."""
BOOTSTRAP_DRAWS = 4
BOOTSTRAP_STEPS = 40
"""Dual steps of each proximal point; it starts from zero."""
BOOTSTRAP_SEED = 0


def measure(
    tensors: ScanTensors, state: ReconstructionState, batch_size: int, smoothing: float = 0.0
) -> ReconstructionMetrics:
    """Compare a reconstruction with the patterns it was made from, in one pass over them.

    Args:
        tensors: the scan on its device.
        state: the reconstruction.
        batch_size: patterns in memory at a time; no effect on the result.
        smoothing: strength of the total variation that the object was refined with, photons.

    Returns:
        Values and maps on the object grid and the detector, without the comparison of half scans.
    """
    with torch.inference_mode():
        state = _covering_all_patches(state)
        scale, photon_scale = _scales(tensors, state)
        sums = _Sums(tensors, state, scale, photon_scale, smoothing)
        share = processes().share(tensors.size)
        batches = np.array_split(np.array(share), math.ceil(len(share) / batch_size)) if share else []
        for part in _simulated(tensors, state, batches):
            sums.add(part)
        sums.sum_over_processes()
        return sums.metrics()


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


class _Part(NamedTuple):
    """A batch of patterns, measured and simulated."""

    batch: PatternBatch
    simulation: Simulation


class _Sums:
    """Sums over all patterns."""

    def __init__(
        self, tensors: ScanTensors, state: ReconstructionState, scale: float, photon_scale: float, smoothing: float
    ) -> None:
        self._tensors = tensors
        self._state = state
        self._scale = scale
        self._photon_scale = photon_scale
        self._smoothing = smoothing
        self._noise = PhotonNoise(scale / photon_scale, tensors.device)
        flat = torch.zeros(state.object_shape, device=tensors.device)
        self._photons, self._squares, self._information = flat.clone(), flat.clone(), flat.clone()
        self._difference_map, self._measured_map = flat.clone(), flat.clone()
        self._gradients, self._noise_gradients = flat.clone(), flat.clone()
        detector = torch.zeros(tensors.pattern_shape, device=tensors.device)
        self._detector_difference, self._detector_measured, self._detector_noise = (detector.clone() for _ in range(3))
        self._squared_residual, self._expected_square = 0.0, 0.0

    def add(self, part: _Part) -> None:
        """Add a batch."""
        good = self._tensors.good_pixels
        measured, model = part.batch.amplitudes[0], part.simulation.amplitudes[0]
        difference = (measured - self._scale * model).abs() * good
        self._detector_difference += difference.sum(dim=0)
        self._detector_measured += measured.sum(dim=0)
        root = self._photon_scale * model
        self._detector_noise += (self._noise.deviation(root) * good).sum(dim=0)
        light = power(part.batch.probes[0])
        self._photons += self._accumulate(light, part)
        self._squares += self._accumulate(light.square(), part)
        self._difference_map += self._accumulate(light * difference.sum(dim=(-2, -1), keepdim=True), part)
        self._measured_map += self._accumulate(light * measured.sum(dim=(-2, -1), keepdim=True), part)
        self._add_uncertainty(part, root)

    def sum_over_processes(self) -> None:
        """Add the sums of the other processes, each over its own patterns."""
        squares = torch.tensor([self._squared_residual, self._expected_square], device=self._tensors.device)
        maps = [self._photons, self._squares, self._information, self._difference_map, self._measured_map]
        gradients = [self._gradients, self._noise_gradients]
        detector = [self._detector_difference, self._detector_measured, self._detector_noise]
        processes().sum([*maps, *gradients, *detector, squares])
        self._squared_residual, self._expected_square = squares.tolist()

    def _add_uncertainty(self, part: _Part, root: Tensor) -> None:
        good = self._tensors.good_pixels
        waves, probes, expected = part.simulation.waves[0], part.batch.probes[0], part.simulation.expected[0]
        residual = (part.batch.amplitudes[0] - self._noise.mean(root)) * good
        variance = self._noise.variance(root) * good
        chi = backpropagate(waves * (residual / expected.sqrt())[:, None])
        gradient = patch_updates(chi[None], probes[None])[0]
        self._gradients += self._accumulate(gradient.real.square() + gradient.imag.square(), part)
        share = (waves.real.square() + waves.imag.square()) / expected[:, None]
        light = probes.real.square() + probes.imag.square()
        noise = (share * variance[:, None]).mean(dim=(-2, -1), keepdim=True)
        self._noise_gradients += self._accumulate((light * noise).sum(dim=1), part)
        known = (share * good).mean(dim=(-2, -1), keepdim=True)
        self._information += self._accumulate((light * known).sum(dim=1), part) * self._photon_scale**2
        self._squared_residual += float(residual.square().sum())
        self._expected_square += float(variance.sum())

    def _accumulate(self, patches: Tensor, part: _Part) -> Tensor:
        return accumulate_patches(patches[None], part.batch.patch_origins, self._state.object_shape)[0]

    def metrics(self) -> ReconstructionMetrics:
        """Return values and maps on the object grid."""
        photons = self._on_grid(self._photons * self._photon_scale**2)
        coverage = self._on_grid(is_illuminated(self._photons)).astype(np.bool_)
        photons[~coverage] = 0.0
        squares = self._on_grid(self._squares * self._photon_scale**4)
        uncertainty = np.where(coverage, self._on_grid(self._uncertainty()), np.nan).astype(np.float32)
        lit = photons > WELL_LIT * photons[coverage].mean(dtype=np.float64) if coverage.any() else coverage
        overlap = (photons[coverage] ** 3 / squares[coverage]).sum(dtype=np.float64)
        measured = float(self._detector_measured.sum(dtype=torch.float64))
        detector = _ratio(self._detector_difference, self._detector_measured)
        expected = self._expected_square
        return ReconstructionMetrics(
            r_factor=float(self._detector_difference.sum(dtype=torch.float64)) / measured,
            noise_r_factor=float(self._detector_noise.sum(dtype=torch.float64)) / measured,
            reduced_chi_square=self._squared_residual / expected if expected > 0 else math.nan,
            scale=self._scale,
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
        return (self._after_smoothing(variance) if self._smoothing else variance).sqrt()

    def _after_smoothing(self, variance: Tensor) -> Tensor:
        """Return the variance that total variation leaves of ``variance``, its bias included, ``(h, w)`` real."""
        object_array = self._state.object_array
        ratio = self._smoothing / regularise(self._photons)
        deviation = variance.clamp_max(1.0).sqrt()
        generator = torch.Generator().manual_seed(BOOTSTRAP_SEED)
        squared = torch.zeros_like(variance)
        for _ in range(BOOTSTRAP_DRAWS):
            noise = torch.randn(object_array.shape, dtype=object_array.dtype, generator=generator)
            noisy = object_array + deviation * noise.to(object_array.device)
            duals = torch.zeros_like(noisy), torch.zeros_like(noisy)
            error = self._tensors.kernels.proximal_point(noisy, ratio, *duals, BOOTSTRAP_STEPS) - object_array
            squared += error.real.square() + error.imag.square()
        return _smoothed(squared) / BOOTSTRAP_DRAWS

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


def _simulated(
    tensors: ScanTensors, state: ReconstructionState, parts: Sequence[npt.NDArray[np.integer]]
) -> Iterator[_Part]:
    for indices in parts:
        batch = tensors.batch(state, indices)
        yield _Part(batch, simulate(state.object_array[None], batch.probes, batch.patch_origins))


def _scales(tensors: ScanTensors, state: ReconstructionState) -> tuple[float, float]:
    """Return the factors of the expected amplitudes of the smallest R-factor, and of the measured number of photons.

    ``sum |m - c s|`` is smallest at the median of ``m / s`` weighted by ``s``. At low dose that median lies below the
    scale of the photons, so it is limited to 20 % around that of least squares.
    """
    size = tensors.size
    chosen = np.unique(np.linspace(0, size - 1, min(size, SCALE_POSITIONS)).astype(np.int64))
    measured, simulated = [], []
    good = tensors.good_pixels.flatten() > 0
    for batch, simulation in _simulated(tensors, state, np.array_split(chosen, math.ceil(chosen.size / 16))):
        measured.append(batch.amplitudes[0].flatten(1)[:, good].flatten())
        simulated.append(simulation.amplitudes[0].flatten(1)[:, good].flatten())
    m, s = torch.cat(measured), torch.cat(simulated)
    expected = float(s.square().sum(dtype=torch.float64))
    squares = float((m * s).sum(dtype=torch.float64)) / expected
    ratio, order = (m / s).sort()
    weight = s[order].cpu().to(torch.float64).cumsum(0)
    median = float(ratio[int(torch.searchsorted(weight, 0.5 * weight[-1]))])
    scale = min(max(median, (1 - SCALE_RANGE) * squares), (1 + SCALE_RANGE) * squares)
    return scale, math.sqrt(float(m.square().sum(dtype=torch.float64)) / expected)


def _smoothed(image: Tensor) -> Tensor:
    """Return the mean over a square of ``2 SMOOTHING_RADIUS_PX + 1`` pixels."""
    side = 2 * SMOOTHING_RADIUS_PX + 1
    mean: Tensor = torch.nn.functional.avg_pool2d(image[None, None], side, stride=1, padding=SMOOTHING_RADIUS_PX)[0, 0]
    return mean


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    return torch.where(denominator > 0, numerator / denominator.clamp_min(1e-30), torch.nan)
