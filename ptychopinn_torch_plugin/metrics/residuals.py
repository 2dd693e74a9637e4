"""The engine's own judgement: one pass over the patterns with what was reconstructed, and no truth.

The uncertainty: every position votes on every object pixel it lit. Close to the solution, and with the phases of the
neighbours' votes as good as random, the counts of position j know of the pixel ``x`` as much as ::

    1 / variance = sum_jm |P_jm(x)|^2 s_jm,   s_jm = mean over detector pixels of |psi_jm|^2 / I_j

complex photons (the diagonal of the Fisher information: the square root of a count has the variance 1/4 whatever its
mean, and an amplitude tells one of the two real unknowns of a wave, so that a pixel lit by ``W`` photons has the
variance ``1/W``). That is photon noise alone. What else is wrong shows in the spread of the votes: with the residual
``r_j = sqrt(n) - E sqrt(n)`` brought back to the exit wave, ``chi_jm = F^-1(psi_jm r_j / |psi_j|)``, position j wishes
to change pixel ``x`` by ``g_j = sum_m conj(P_jm) chi_jm`` over its photons; photon noise alone makes ``|g_j|^2``
equal ``sum_m |P_jm|^2 <Var(sqrt n) |psi_jm|^2 / I_j>`` on average. The ratio of the two, where above 1, multiplies the
variance (the sandwich estimator: P. J. Huber, Proc. 5th Berkeley Symp. 1, 221 (1967)).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..data.scan import patch_bounds
from ..data.tensors import ScanTensors
from ..engines.stitching import Stitched
from ..physics.forward import AMPLITUDE_EPS, intensity
from ..physics.patches import gather, merge
from ..physics.probe import power, probes_at
from ..physics.propagation import backpropagate, propagate
from ..types import ReconstructionMetrics
from .photon_noise import PhotonNoise

SCALE_POSITIONS = 64
"""Positions that the best scale is found on, spread evenly: the R-factor is flat there, more would not change it."""
SCALE_RANGE = 0.2
"""How far the scale of the smallest R-factor may lie from that of least squares, relative."""
VOTE_RADIUS_PX = 2
"""Spread of the votes is averaged over so many pixels to all sides: a few dozen votes alone tell it roughly."""
WELL_LIT = 0.5
"""Share of the typical illumination from which on a pixel counts in the typical uncertainty."""


class Scene(NamedTuple):
    """What was reconstructed, and on which frames it is judged."""

    canvas: Tensor
    """Object, ``(h, w)`` complex64; every frame lies on it."""
    origin: npt.NDArray[np.int64]
    """Object pixel (y, x) of its first pixel."""
    probe: Tensor
    """Modes, ``(M, H, W)`` complex64, in square roots of photons."""
    patch_origins: npt.NDArray[np.int64]
    """First object pixel (y, x) of every frame, ``(n, 2)``."""
    subpixel_shifts: npt.NDArray[np.float64]
    """Subpixel parts of the positions, ``(n, 2)``."""


class _View(NamedTuple):
    """A batch of positions, measured and simulated."""

    measured: Tensor
    """Amplitudes, ``(C, H, W)``, 0 where bad."""
    waves: Tensor
    """Far field, ``(C, M, H, W)``."""
    probes: Tensor
    """``(C, M, H, W)``."""
    patch_origins: Tensor
    """On the canvas, ``(1, C, 2)``."""


def judge(
    tensors: ScanTensors,
    stitched: Stitched,
    origin: npt.NDArray[np.integer],
    probe: Tensor,
    positions: npt.NDArray[np.float64],
    *,
    batch_size: int,
) -> ReconstructionMetrics:
    """Compare a reconstruction with the patterns it was made from, in one pass over them.

    Args:
        tensors: the scan on its device.
        stitched: object and coverage, ``(h, w)``.
        origin: object pixel (y, x) of its first pixel.
        probe: modes, ``(M, H, W)`` complex64, in square roots of photons.
        positions: patch centres ``(n, 2)`` as (y, x), pixels of the object grid, as reconstructed.
        batch_size: patterns in memory at a time; no effect on the result.

    Returns:
        Figures and maps on the object grid and the detector; no half scans.
    """
    with torch.inference_mode():
        scene = _scene_of(tensors, stitched, origin, probe, positions)
        scale, photon_scale = _scales(tensors, scene)
        sums = _Sums(tensors, scene, scale, photon_scale)
        everything = np.arange(tensors.scan.size)
        for view in _views(tensors, scene, np.array_split(everything, max(1, math.ceil(everything.size / batch_size)))):
            sums.add(view)
        coverage = np.zeros(tensors.scan.object_shape, dtype=np.bool_)
        _place(coverage, stitched.coverage.cpu().numpy(), np.asarray(origin))
        return sums.judgement(coverage)


class _Sums:
    """What the pass adds up."""

    def __init__(self, tensors: ScanTensors, scene: Scene, scale: float, photon_scale: float) -> None:
        self._tensors = tensors
        self._scene = scene
        self._scale = scale
        self._photon_scale = photon_scale
        self._noise = PhotonNoise(scale / photon_scale, tensors.device)
        self._shape = (scene.canvas.shape[0], scene.canvas.shape[1])
        flat = torch.zeros(self._shape, device=tensors.device)
        self._photons, self._squares, self._information = flat.clone(), flat.clone(), flat.clone()
        self._difference_map, self._measured_map = flat.clone(), flat.clone()
        self._votes, self._noise_votes = flat.clone(), flat.clone()
        detector = torch.zeros(tensors.scan.pattern_shape, device=tensors.device)
        self._detector_difference, self._detector_measured, self._detector_noise = (detector.clone() for _ in range(3))
        self._squares_sum = [0.0, 0.0]

    def add(self, view: _View) -> None:
        """Take a batch in."""
        good = self._tensors.good_pixels
        model = (intensity(view.waves) + AMPLITUDE_EPS).sqrt()
        difference = (view.measured - self._scale * model).abs() * good
        self._detector_difference += difference.sum(dim=0)
        self._detector_measured += view.measured.sum(dim=0)
        root = self._photon_scale * model
        self._detector_noise += (self._noise.deviation(root) * good).sum(dim=0)
        light = power(view.probes)
        self._photons += self._merge(light, view)
        self._squares += self._merge(light.square(), view)
        self._difference_map += self._merge(light * difference.sum(dim=(-2, -1), keepdim=True), view)
        self._measured_map += self._merge(light * view.measured.sum(dim=(-2, -1), keepdim=True), view)
        self._add_votes(view, model, root)

    def _add_votes(self, view: _View, model: Tensor, root: Tensor) -> None:
        good = self._tensors.good_pixels
        residual = (view.measured - self._noise.mean(root)) * good
        variance = self._noise.variance(root) * good
        change = backpropagate(view.waves * (residual / model)[:, None])
        votes = (view.probes.conj() * change).sum(dim=1)
        self._votes += self._merge(votes.real.square() + votes.imag.square(), view)
        modes = view.waves.real.square() + view.waves.imag.square()
        part = modes / model.square()[:, None]
        light = view.probes.real.square() + view.probes.imag.square()
        spread = (part * variance[:, None]).mean(dim=(-2, -1), keepdim=True)
        self._noise_votes += self._merge((light * spread).sum(dim=1), view)
        known = (part * good).mean(dim=(-2, -1), keepdim=True)
        self._information += self._merge((light * known).sum(dim=1), view) * self._photon_scale**2
        self._squares_sum[0] += float(residual.square().sum())
        self._squares_sum[1] += float(variance.sum())

    def _merge(self, frames: Tensor, view: _View) -> Tensor:
        return merge(frames[None], view.patch_origins, self._shape)[0]

    def judgement(self, coverage: npt.NDArray[np.bool_]) -> ReconstructionMetrics:
        """Figures and maps on the object grid."""
        photons = self._on_grid(self._photons * self._photon_scale**2)
        photons[~coverage] = 0.0
        squares = self._on_grid(self._squares * self._photon_scale**4)
        uncertainty = np.where(coverage, self._on_grid(self._uncertainty()), np.nan).astype(np.float32)
        lit = photons > WELL_LIT * photons[coverage].mean(dtype=np.float64) if coverage.any() else coverage
        overlap = (photons[coverage] ** 3 / squares[coverage]).sum(dtype=np.float64)
        measured = float(self._detector_measured.sum(dtype=torch.float64))
        detector = _ratio(self._detector_difference, self._detector_measured)
        return ReconstructionMetrics(
            r_factor=float(self._detector_difference.sum(dtype=torch.float64)) / measured,
            noise_r_factor=float(self._detector_noise.sum(dtype=torch.float64)) / measured,
            reduced_chi_square=self._squares_sum[0] / self._squares_sum[1] if self._squares_sum[1] > 0 else math.nan,
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
            rings=None,
        )  # fmt: skip

    def _uncertainty(self) -> Tensor:
        reduced_chi_square = _smooth(self._votes) / _smooth(self._noise_votes).clamp_min(1e-30)
        return (reduced_chi_square.clamp_min(1.0) / self._information.clamp_min(1e-30)).sqrt()

    def _on_grid(self, image: Tensor) -> npt.NDArray[np.float32]:
        placed = np.zeros(self._tensors.scan.object_shape, dtype=np.float32)
        _place(placed, image.cpu().numpy(), self._scene.origin)
        return placed


def _scene_of(
    tensors: ScanTensors,
    stitched: Stitched,
    origin: npt.NDArray[np.integer],
    probe: Tensor,
    positions: npt.NDArray[np.float64],
) -> Scene:
    """The scene, its canvas widened by ones should a frame reach beyond it."""
    patch_origins, subpixel_shifts = patch_bounds(positions, tensors.scan.pattern_shape)
    first = np.minimum(origin, patch_origins.min(axis=0)).astype(np.int64)
    given = np.array(stitched.canvas.shape)
    shape = np.maximum(origin + given, patch_origins.max(axis=0) + np.array(tensors.scan.pattern_shape)) - first
    canvas = stitched.canvas.new_ones((int(shape[0]), int(shape[1])))
    y, x = (int(value) for value in origin - first)
    canvas[y : y + given[0], x : x + given[1]] = stitched.canvas
    return Scene(canvas, first, probe, patch_origins, subpixel_shifts)


def _views(tensors: ScanTensors, scene: Scene, batches: list[npt.NDArray[np.integer]]) -> Iterator[_View]:
    for indices in batches:
        subpixel_shifts = torch.from_numpy(scene.subpixel_shifts[indices].astype(np.float32)).to(tensors.device)
        patch_origins = torch.from_numpy(scene.patch_origins[indices] - scene.origin).to(tensors.device)[None]
        probes = probes_at(scene.probe, subpixel_shifts, tensors.phase)
        objects = gather(scene.canvas[None], patch_origins, tensors.scan.pattern_shape)[0]
        yield _View(tensors.amplitudes(indices), propagate(probes * objects[:, None]), probes, patch_origins)


def _scales(tensors: ScanTensors, scene: Scene) -> tuple[float, float]:
    """Factors of the model amplitudes: the one of the smallest R-factor, and the one that gives the photons counted.

    ``sum |m - c s|`` is smallest at the median of ``m / s`` weighted by ``s``. At low dose that median lies below the
    scale of the photons: it is kept within 20 % of least squares.
    """
    size = tensors.scan.size
    chosen = np.unique(np.linspace(0, size - 1, min(size, SCALE_POSITIONS)).astype(np.int64))
    measured, simulated = [], []
    good = tensors.good_pixels.flatten() > 0
    for view in _views(tensors, scene, np.array_split(chosen, math.ceil(chosen.size / 16))):
        measured.append(view.measured.flatten(1)[:, good].flatten())
        simulated.append((intensity(view.waves) + AMPLITUDE_EPS).sqrt().flatten(1)[:, good].flatten())
    m, s = torch.cat(measured), torch.cat(simulated)
    power_of_model = float(s.square().sum(dtype=torch.float64))
    squares = float((m * s).sum(dtype=torch.float64)) / power_of_model
    ratio, order = (m / s).sort()
    weight = s[order].cpu().to(torch.float64).cumsum(0)
    median = float(ratio[int(torch.searchsorted(weight, 0.5 * weight[-1]))])
    scale = min(max(median, (1 - SCALE_RANGE) * squares), (1 + SCALE_RANGE) * squares)
    return scale, math.sqrt(float(m.square().sum(dtype=torch.float64)) / power_of_model)


def _smooth(image: Tensor) -> Tensor:
    """Mean over a square of ``2 VOTE_RADIUS_PX + 1`` pixels."""
    side = 2 * VOTE_RADIUS_PX + 1
    smoothed: Tensor = torch.nn.functional.avg_pool2d(image[None, None], side, stride=1, padding=VOTE_RADIUS_PX)[0, 0]
    return smoothed


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    return torch.where(denominator > 0, numerator / denominator.clamp_min(1e-30), torch.nan)


def _place(grid: npt.NDArray[np.generic], image: npt.NDArray[np.generic], origin: npt.NDArray[np.integer]) -> None:
    """Write ``image`` with its first pixel at ``origin`` into ``grid``; what lies outside is cut off."""
    first = np.maximum(origin, 0)
    last = np.minimum(origin + np.array(image.shape), np.array(grid.shape))
    there = tuple(slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
    here = tuple(slice(int(a), int(b)) for a, b in zip(first - origin, last - origin, strict=True))
    grid[there] = image[here]
