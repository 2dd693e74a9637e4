"""Shift of the shadow with the stage: the linear map from positions to detector pixels, without a reconstruction.

Out of focus, every pattern is also a magnified shadow of the object, and a step ``d`` of the sample shifts the shadow
by ``A d`` on the detector. ``A`` is one number times an orientation of the axes; its sign is opposite to that of the
defocus. The number is found where the correlations of neighbouring patterns, each read at its own shift, have the
largest mean. In the far field ``A = -N / curvature`` detector pixels per object pixel; in the near field it is the
magnification.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial import cKDTree

from .measurement import DISTINCT, Orientation

PAIRS = 400
"""Pairs of neighbouring positions that are compared at most."""
NEIGHBOURS = 4
GRID = 61
"""Trial values of the factor, evenly spread in its logarithm."""
SMALLEST_SHIFT_PX = 2.0
"""A shorter mean shift cannot be told from none: the aperture does not move at all and correlates at zero."""
SIGNIFICANT = 6.0
"""Standard errors by which the mean correlation must exceed zero and the next orientation."""


@dataclass(frozen=True)
class Parallax:
    """The best linear map, or what came nearest to one."""

    orientation: Orientation
    """Of the pair of partners, the one in :data:`~.measurement.DISTINCT`."""
    factor: float
    """Detector pixels by which the shadow moves per object pixel, with its sign."""
    factor_error: float
    """Half of the distance between trial values."""
    correlation: float
    """Mean correlation of neighbouring patterns at the shift."""
    significance: float
    """Correlation over its standard error."""
    lead: float
    """Significance of the difference to the best of the other orientations and signs."""

    @property
    def is_significant(self) -> bool:
        """Whether the shift is certain enough to be used."""
        return min(self.significance, self.lead) > SIGNIFICANT


def find_parallax(
    counts: npt.NDArray[np.number],
    positions: npt.NDArray[np.float64],
    mean: npt.NDArray[np.float64],
    bad_pixels: npt.NDArray[np.bool_],
) -> Parallax | None:
    """Find the linear map of square patterns ``(n, N, N)`` at ``positions`` ``(n, 2)``; None without neighbours."""
    pairs = _pairs(positions)
    if not len(pairs):
        return None
    steps = positions[pairs[:, 1]] - positions[pairs[:, 0]]
    length = float(np.median(np.linalg.norm(steps, axis=1)))
    side = counts.shape[-1]
    if not length > 0:
        return None
    factors = np.geomspace(SMALLEST_SHIFT_PX / length, 0.45 * side / length, GRID)
    surfaces = _correlations(counts, pairs, mean, bad_pixels)
    table = {
        (orientation, sign): np.stack(
            [_read(surfaces, sign * value * steps @ orientation.matrix()) for value in factors]
        )
        for orientation in DISTINCT
        for sign in (1.0, -1.0)
    }
    means = {key: values.mean(axis=1) for key, values in table.items()}
    key = max(means, key=lambda item: float(means[item].max()))
    best = int(means[key].argmax())
    others = [(values, int(means[other].argmax())) for other, values in table.items() if other != key]
    rival = max(others, key=lambda item: float(item[0][item[1]].mean()))
    values = table[key][best]
    ratio = float(factors[1] / factors[0])
    factor = float(key[1] * factors[best])
    return Parallax(
        orientation=key[0],
        factor=factor,
        factor_error=abs(factor) * (ratio - 1),
        correlation=float(values.mean()),
        significance=_significance(values),
        lead=_significance(values - rival[0][rival[1]]),
    )


def _pairs(positions: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    count = len(positions)
    if count < 2:
        return np.zeros((0, 2), dtype=np.int64)
    _, near = cKDTree(positions).query(positions, k=min(NEIGHBOURS + 1, count))
    pairs = np.stack([np.repeat(np.arange(count), near.shape[1] - 1), near[:, 1:].ravel()], axis=1)
    pairs = np.unique(np.sort(pairs, axis=1), axis=0)
    chosen = np.unique(np.linspace(0, len(pairs) - 1, min(PAIRS, len(pairs))).astype(np.int64))
    return np.asarray(pairs[chosen])


def _correlations(
    counts: npt.NDArray[np.number],
    pairs: npt.NDArray[np.int64],
    mean: npt.NDArray[np.float64],
    bad_pixels: npt.NDArray[np.bool_],
) -> npt.NDArray[np.float32]:
    """Return the correlation of each pair at every shift, ``(pairs, N, N)``, zero shift in the middle."""
    noise = np.sqrt(mean + 1.0)
    weight = np.where(bad_pixels, 0.0, 1.0 / noise)
    total = float(mean.sum())

    def spectrum(index: int) -> npt.NDArray[np.complexfloating]:
        frame = np.asarray(counts[index], dtype=np.float64)
        frame = np.where(bad_pixels, 0.0, frame)
        contrast = gaussian_filter((frame - mean * frame.sum() / total) * weight, 1.0)
        return np.asarray(np.fft.fft2(contrast / max(float(np.linalg.norm(contrast)), 1e-30)))

    spectra = {int(index): spectrum(int(index)) for index in np.unique(pairs)}
    surfaces = [np.fft.ifft2(spectra[int(a)].conj() * spectra[int(b)]).real for a, b in pairs]
    return np.fft.fftshift(np.stack(surfaces), axes=(-2, -1)).astype(np.float32)


def _read(surfaces: npt.NDArray[np.float32], shifts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return each surface at its shift (y, x), ``(pairs,)``."""
    side = surfaces.shape[-1]
    points = np.stack([np.arange(len(surfaces)), *(shifts.T + side // 2)])
    return np.asarray(map_coordinates(surfaces, points, order=1, mode='constant'), dtype=np.float64)


def _significance(values: npt.NDArray[np.float64]) -> float:
    error = float(values.std(ddof=1) / np.sqrt(values.size)) if values.size > 1 else 0.0
    return float(values.mean() / error) if error > 0 else 0.0
