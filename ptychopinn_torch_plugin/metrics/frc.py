"""Fourier ring correlation of two objects on one grid, and their alignment, in numpy.

Rings, statistic and threshold are those of Ptychodus' ``compute_fourier_ring_correlation``; a test compares the two.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ..types import FourierRingCorrelation

Complex = npt.NDArray[np.complexfloating]
Real = npt.NDArray[np.floating]

ALIGNMENT_STEPS = 12
EDGE_TOLERANCE = 1e-9
"""Relative tolerance of the edges of rings: a pixel on an edge belongs to the outer ring in spite of rounding."""
UNCERTAIN_RINGS = 3
"""Number of lowest rings of which some may lie below the threshold: they have few pixels."""
WELL_ILLUMINATED = 0.5
"""Share of the mean illumination from which on a pixel is compared."""
EDGE_PX = 8.0
"""Width of the soft edge of the window."""


def ring_correlation(first: Complex, second: Complex, window: Real) -> FourierRingCorrelation:
    """Compute the Fourier ring correlation of two aligned objects.

    Args:
        first: complex ``(h, w)``.
        second: the same shape.
        window: weights ``(h, w)`` with smooth edges; weighted means are subtracted first.

    Returns:
        ``sum Re(F1 conj(F2)) / sqrt(sum |F1|^2 sum |F2|^2)`` per ring with the half-bit threshold (M. van Heel &
        M. Schatz, J. Struct. Biol. 151, 250 (2005)).
    """
    spectra = [np.fft.fft2(window * (array - (array * window).sum() / window.sum())) for array in (first, second)]
    frequency_y, frequency_x = (np.fft.fftfreq(side) for side in window.shape)
    radius = np.hypot(frequency_y[:, None], frequency_x)
    width = 1.0 / min(window.shape)
    inside = (radius <= 0.5 * (1 + EDGE_TOLERANCE)) & (radius > 0)
    rings = np.floor(radius[inside] / width + EDGE_TOLERANCE).astype(np.int64)
    f1, f2 = (spectrum[inside] for spectrum in spectra)
    count = int(rings.max()) + 1
    cross, power1, power2 = (
        np.bincount(rings, weights=values, minlength=count)
        for values in ((f1 * f2.conj()).real, np.abs(f1) ** 2, np.abs(f2) ** 2)
    )
    pixels = np.bincount(rings, minlength=count)
    power = np.sqrt(power1 * power2)
    correlation = np.where(power > 0, cross / np.where(power > 0, power, 1.0), np.nan)
    threshold = half_bit_threshold(pixels)
    frequencies = np.arange(count) * width
    return FourierRingCorrelation(
        frequencies=frequencies,
        correlation=correlation,
        threshold=threshold,
        resolution_px=resolution_of(frequencies, correlation, threshold),
    )


def half_bit_threshold(pixels: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    """Compute the half-bit threshold of rings (M. van Heel & M. Schatz, J. Struct. Biol. 151, 250 (2005)).

    Args:
        pixels: ``(rings,)``, Fourier pixels in each.

    Returns:
        ``(rings,)``, NaN for an empty ring.
    """
    with np.errstate(divide='ignore'):
        root = np.where(pixels > 0, 1.0 / np.sqrt(pixels), np.nan)
    signal = (math.sqrt(2.0) - 1.0) / 2
    return np.asarray((signal + (2 * math.sqrt(signal) + 1) * root) / (signal + 1 + 2 * math.sqrt(signal) * root))


def resolution_of(frequencies: Real, correlation: Real, threshold: Real) -> float | None:
    """Return the full period, in pixels, at which the correlation first falls below the threshold.

    2, the limit of the grid, where it never does. The lowest rings, which have few pixels, may lie below the threshold;
    if the :data:`UNCERTAIN_RINGS` lowest all do, there is no resolution: None.
    """
    known = np.flatnonzero(np.isfinite(correlation) & np.isfinite(threshold))
    above = correlation[known] > threshold[known]
    if not above[:UNCERTAIN_RINGS].any():
        return None
    start = int(np.argmax(above))
    below = np.flatnonzero(~above[start:])
    if below.size == 0:
        return 2.0
    last, first = known[start + below[0] - 1], known[start + below[0]]
    gap_last, gap_first = (float(correlation[k] - threshold[k]) for k in (last, first))
    crossing = frequencies[last] + gap_last / (gap_last - gap_first) * (frequencies[first] - frequencies[last])
    return max(2.0, float(1.0 / crossing))


def window_of(photons: Real) -> npt.NDArray[np.float64]:
    """Return weights ``(h, w)`` of the well illuminated pixels: 1 inside, a cosine to 0 towards the edges.

    Args:
        photons: ``(h, w)``, photons on each object pixel.
    """
    from scipy.ndimage import distance_transform_edt  # few runs need it, and its import takes long

    illuminated = photons > 0
    if not illuminated.any():
        return np.zeros(photons.shape)
    inside = np.pad(photons > WELL_ILLUMINATED * photons[illuminated].mean(dtype=np.float64), 1)
    depth = np.minimum(distance_transform_edt(inside)[1:-1, 1:-1] / EDGE_PX, 1.0)
    return np.asarray(0.5 - 0.5 * np.cos(np.pi * depth))


def aligned(moving: Complex, fixed: Complex, window: Real) -> Complex:
    """Align ``moving`` with ``fixed``, both complex ``(h, w)``, where ``window`` is not zero.

    Removes what no pattern determines: a constant factor, a linear phase ramp and a common shift. They are fitted
    together by Gauss-Newton steps; the first ramp is the strongest frequency of ``fixed conj(moving)``.
    """
    y, x = np.indices(fixed.shape) - (np.array(fixed.shape).reshape(2, 1, 1) - 1) / 2
    frequency_y, frequency_x = np.fft.fftfreq(fixed.shape[0])[:, None], np.fft.fftfreq(fixed.shape[1])
    tilt, shift, factor = _tilt_between(moving, fixed, window), np.zeros(2), 1.0 + 0.0j
    answer = moving
    for step in range(ALIGNMENT_STEPS):
        # The ramp is removed first: with a ramp, the object is not periodic, and a Fourier shift would cause ringing.
        spectrum = np.fft.fft2(moving * np.exp(1j * (tilt[0] * y + tilt[1] * x)))
        spectrum *= np.exp(-2j * np.pi * (frequency_y * shift[0] + frequency_x * shift[1]))
        answer = np.fft.ifft2(spectrum)
        if step == 0:
            factor = complex(np.vdot(window * answer, window * fixed) / np.vdot(window * answer, window * answer))
        slopes = [np.fft.ifft2(spectrum * (-2j * np.pi * f)) * factor for f in (frequency_y, frequency_x)]
        answer = answer * factor
        change = _least_squares(
            [answer, 1j * answer, 1j * y * answer, 1j * x * answer, *slopes], fixed - answer, window
        )
        factor *= np.exp(complex(change[0], change[1]))
        tilt = tilt + change[2:4]
        shift = shift + np.clip(change[4:6], -1.0, 1.0)
    return np.asarray(answer)


def _tilt_between(moving: Complex, fixed: Complex, window: Real) -> npt.NDArray[np.float64]:
    """Return the phase ramp (y, x) of ``fixed conj(moving)``, radians per pixel, from its strongest frequency."""
    size = [1 << (4 * side - 1).bit_length() for side in fixed.shape]
    spectrum = np.abs(np.fft.fft2(window * fixed * moving.conj(), size))
    peak = np.unravel_index(spectrum.argmax(), spectrum.shape)
    return np.array([2 * np.pi * np.fft.fftfreq(count)[index] for count, index in zip(size, peak, strict=True)])


def _least_squares(columns: list[Complex], target: Complex, window: Real) -> npt.NDArray[np.float64]:
    """Return real coefficients of complex ``columns``, ``(h, w)`` each, that fit ``target`` best in ``window``."""
    design = np.stack([(window * column).ravel() for column in columns])
    normal = (design.conj() @ design.T).real
    size = np.sqrt(np.diag(normal).clip(1e-30))
    right = (design.conj() @ (window * target).ravel()).real / size
    return np.asarray(np.linalg.lstsq(normal / np.outer(size, size), right, rcond=1e-10)[0] / size)
