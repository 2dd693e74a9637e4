"""What the patterns show without a reconstruction: bad pixels, unusual patterns, centre, and useful size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import maximum_filter, median_filter

Counts = npt.NDArray[np.number]
Mask = npt.NDArray[np.bool_]
Image = npt.NDArray[np.float64]

EXPECTED_COUNTS = 25.0
"""Counts that the neighbours of a pixel must have collected before a pixel without any is called dead."""
HOT_FACTOR = 4.0
"""A pixel that collected so many times the counts of its brightest neighbour is hot: no diffraction is so sharp."""
HOT_COUNTS = 20.0
"""Counts that a hot pixel has collected at least."""
SATURATION_PIXELS = 4
"""Pixels that share the largest count of a scan before that count is called the limit of the detector."""
COUNTER_BITS = (12, 14, 15, 16, 18, 20, 24)
"""Depths of detector counters: the largest count of a scan is a limit where it is 2^bits - 1 or one less."""
FAINT_PATTERN = 0.1
BRIGHT_PATTERN = 3.0
"""Sums of a pattern over the median of the scan below and above which it is unusual."""
SIGNAL_OVER_NOISE = 0.25
"""Variance between patterns over that of photon noise that a ring of pixels must have to be useful."""
SIDE_STEP = 16
"""The useful side is a multiple of this, which keeps Fourier transforms fast."""
SMALLEST_SIDE = 32
BLOCK = 64
"""Patterns that are read at a time."""


@dataclass(frozen=True, eq=False)
class DetectorReport:
    """Findings about detector and patterns."""

    mean: Image
    """Mean counts, ``(H, W)``, of the patterns that are not empty."""
    bad_pixels: Mask
    """Pixels that the file masks or that are dead, hot or saturated, ``(H, W)``."""
    dead: int
    """Pixels that are not masked and count nothing, though their neighbours do."""
    hot: int
    """Pixels that are not masked and count far more than all their neighbours."""
    saturated: int
    """Pixels that reach the limit of the counter in any pattern."""
    limit: float | None
    """That limit, counts; None where there is none."""
    empty_patterns: npt.NDArray[np.int64]
    faint_patterns: npt.NDArray[np.int64]
    bright_patterns: npt.NDArray[np.int64]
    photons: float
    """Median counts of a pattern."""
    flicker: float
    """Robust relative standard deviation of the sums of the patterns, photon noise removed."""
    centre: tuple[float, float]
    """Centre (y, x) of the mean pattern, pixels."""
    centre_error: float
    """Standard error of the centre along each axis, pixels."""
    useful_side: int
    """Side of the square about the centre within which patterns differ by more than photon noise."""


def inspect_detector(counts: Counts, masked: Mask) -> DetectorReport:
    """Examine patterns ``(n, H, W)``, of which the pixels ``masked`` ``(H, W)`` were not measured."""
    sums = np.array([float(pattern[~masked].sum(dtype=np.float64)) for pattern in counts])
    lit = np.flatnonzero(sums > 0)
    usual = float(np.median(sums[lit])) if lit.size else 0.0
    total, squares, largest = _moments(counts, lit)
    number = max(lit.size, 1)
    mean, dead, hot = total / number, _dead(total, masked), _hot(total, masked)
    limit = _limit(counts, largest, masked | dead | hot)
    saturated = np.zeros_like(masked) if limit is None else (largest >= limit) & ~masked
    bad = masked | dead | hot | saturated
    variance = np.maximum(squares / number - mean**2, 0.0) * number / max(number - 1, 1)
    centre, error = centre_of(mean, bad, number)
    return DetectorReport(
        mean=mean,
        bad_pixels=bad,
        dead=int(dead.sum()),
        hot=int(hot.sum()),
        saturated=int(saturated.sum()),
        limit=limit,
        empty_patterns=np.flatnonzero(sums <= 0),
        faint_patterns=np.flatnonzero((sums > 0) & (sums < FAINT_PATTERN * usual)),
        bright_patterns=np.flatnonzero(sums > BRIGHT_PATTERN * usual),
        photons=usual,
        flicker=_flicker(sums[lit]),
        centre=centre,
        centre_error=error,
        useful_side=_useful_side(mean, variance, bad, centre, number),
    )


def centre_of(mean: Image, bad_pixels: Mask, pattern_count: int) -> tuple[tuple[float, float], float]:
    """Return the centre (y, x) of the mean pattern ``(H, W)`` and its standard error, pixels.

    The centre is that of the symmetry under a rotation by 180 degrees, which an aperture has and an object blurs: half
    of the shift that registers the square root of the pattern with its rotation. Bad pixels take the value opposite.
    """
    root = np.sqrt(np.where(bad_pixels, 0.0, mean))
    height, width = root.shape
    turned = root[::-1, ::-1]
    # Rotating the array moves pixel p to (N - 1) - p: a centre c gives a correlation peak at 2 c - (N - 1).
    size = (2 * height, 2 * width)
    correlation = np.fft.ifft2(np.fft.fft2(root, size) * np.fft.fft2(turned, size).conj()).real
    peak = np.unravel_index(int(correlation.argmax()), size)
    centre = []
    for axis, side in enumerate((height, width)):
        line = np.take(correlation, peak[1 - axis], axis=1 - axis)
        lag = peak[axis] + _vertex(line, int(peak[axis]))
        lag = lag - 2 * side if lag > side else lag
        centre.append((lag + side - 1) / 2)
    total = float(mean[~bad_pixels].sum()) * pattern_count
    spread = float(np.sqrt((mean * _squared_distance(mean.shape, centre)).sum() / max(mean.sum(), 1e-30) / 2))
    # Photon noise moves the centre of gravity by this much; the symmetry of the object's own scattering is not exact
    # either, which a hundredth of the width stands for.
    error = math.hypot(spread / math.sqrt(max(total, 1.0)), 0.01 * spread)
    return (float(centre[0]), float(centre[1])), error


def _squared_distance(shape: tuple[int, ...], centre: list[float]) -> Image:
    y, x = np.indices(shape)
    return np.asarray((y - centre[0]) ** 2 + (x - centre[1]) ** 2, dtype=np.float64)


def _vertex(line: npt.NDArray[np.float64], index: int) -> float:
    """Return the offset of the vertex of the parabola through three samples of a periodic ``line`` about ``index``."""
    left, middle, right = (float(line[(index + step) % line.size]) for step in (-1, 0, 1))
    curvature = left - 2 * middle + right
    return 0.0 if curvature >= 0 else 0.5 * (left - right) / curvature


def _moments(counts: Counts, lit: npt.NDArray[np.int64]) -> tuple[Image, Image, Image]:
    """Return the sum, the sum of squares and the maximum of the patterns ``lit``, each ``(H, W)``."""
    shape = counts.shape[1:]
    total, squares, largest = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for start in range(0, lit.size, BLOCK):
        patterns = np.asarray(counts[lit[start : start + BLOCK]], dtype=np.float64)
        total += patterns.sum(axis=0)
        squares += np.square(patterns).sum(axis=0)
        np.maximum(largest, patterns.max(axis=0), out=largest)
    return total, squares, largest


def _dead(total: Image, masked: Mask) -> Mask:
    """Return the pixels without a count whose neighbours have enough for that to be no chance."""
    return np.asarray((total == 0) & ~masked & (median_filter(total, 5) > EXPECTED_COUNTS))


def _hot(total: Image, masked: Mask) -> Mask:
    """Return the pixels that collected far more than every neighbour."""
    ring = np.ones((3, 3), dtype=np.bool_)
    ring[1, 1] = False
    brightest = maximum_filter(np.where(masked, 0.0, total), footprint=ring)
    return np.asarray((total > HOT_FACTOR * brightest) & (total > HOT_COUNTS) & ~masked)


def _limit(counts: Counts, largest: Image, bad: Mask) -> float | None:
    """Return the limit of the counter, where several pixels share the largest count of the scan or it is 2^bits - 1."""
    inside = largest[~bad]
    if not inside.size:
        return None
    top = float(inside.max())
    if top < 2 ** COUNTER_BITS[0] - 2:
        return None
    is_depth = any(top in (2.0**bits - 1, 2.0**bits - 2) for bits in COUNTER_BITS)
    shared = int((inside == top).sum())
    return top if is_depth or shared >= SATURATION_PIXELS else None


def _flicker(sums: npt.NDArray[np.float64]) -> float:
    if sums.size < 4:
        return 0.0
    usual = float(np.median(sums))
    spread = 1.4826 * float(np.median(np.abs(sums - usual))) / usual
    return math.sqrt(max(spread**2 - 1.0 / usual, 0.0))


def _useful_side(mean: Image, variance: Image, bad: Mask, centre: tuple[float, float], pattern_count: int) -> int:
    """Return the side of the square in which the patterns differ by more than photon noise."""
    y, x = np.indices(mean.shape)
    half = SIDE_STEP // 2
    ring = np.maximum(np.abs(y - centre[0]), np.abs(x - centre[1])) // half
    good = ~bad
    rings = ring[good].astype(np.int64)
    excess = np.bincount(rings, weights=(variance - mean)[good])
    noise = np.bincount(rings, weights=mean[good])
    pixels = np.bincount(rings)
    # The variance of the estimated variance of a Poisson count is about (m + 2 m^2) / pattern_count.
    doubt = np.sqrt(np.bincount(rings, weights=(mean + 2 * mean**2)[good]) / max(pattern_count - 1, 1))
    is_useful = (excess > SIGNAL_OVER_NOISE * noise) & (excess > 3 * doubt) & (pixels > 0)
    outermost = int(np.flatnonzero(is_useful)[-1]) + 1 if is_useful.any() else len(pixels)
    side = SIDE_STEP * outermost
    return int(min(max(side, SMALLEST_SIDE), SIDE_STEP * math.ceil(max(mean.shape) / SIDE_STEP)))
