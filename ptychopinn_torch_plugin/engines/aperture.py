"""A probe from nothing: the aperture from the mean pattern, out of focus by a given curvature.

A lens of any shape (disc, annulus with central stop, rectangle) is seen in the far field as its own shadow: the mean
pattern is the intensity of the aperture, blurred by what the object scatters. With the frequency ``q`` in cycles per
object pixel and the curvature ``k = wavelength * defocus / pixel^2``, the probe is::

    P = F^-1[ sqrt(mean pattern) exp(-i pi k q^2) ]

Positive curvature is a positive defocus distance of Ptychodus' zone plate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import median_filter

EDGE_ENERGY = 0.95
"""Share of the counts inside of the radius that is called the edge of the aperture."""
STOP_LEVEL = 0.25
"""The aperture has a central stop where the counts about the centre are below this share of the typical ones."""
LARGEST_PROBE = 0.9
"""Share of the array that the probe may fill: a wider one is aliased."""


@dataclass(frozen=True, eq=False)
class Aperture:
    """Intensity of the aperture on the detector, zero frequency at ``(N // 2, N // 2)``."""

    intensity: npt.NDArray[np.float64]
    """Mean counts without bad pixels, ``(N, N)``."""
    edge_px: float
    """Radius of the edge, detector pixels."""
    stop_px: float
    """Radius of the central stop, detector pixels; 0 where there is none."""

    @property
    def side(self) -> int:
        """Side of the pattern in pixels."""
        return int(self.intensity.shape[0])

    @property
    def edge_frequency(self) -> float:
        """Frequency of the edge, cycles per object pixel."""
        return self.edge_px / self.side

    def curvature_of_waves(self, waves: float) -> float:
        """Return the curvature whose phase at the edge is ``waves`` wavelengths."""
        return 2.0 * waves / self.edge_frequency**2

    @property
    def largest_curvature(self) -> float:
        """Curvature at which the probe fills the array."""
        return LARGEST_PROBE * self.side / (2.0 * self.edge_frequency)

    def probe(self, curvature: float) -> npt.NDArray[np.complex64]:
        """Return the probe ``(1, N, N)``, its middle at ``(N - 1) / 2`` up to half a pixel."""
        frequency = (np.arange(self.side) - self.side // 2) / self.side
        phase = -np.pi * curvature * (frequency[:, None] ** 2 + frequency**2)
        spectrum = np.sqrt(self.intensity) * np.exp(1j * phase)
        wave = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(spectrum)))
        return np.asarray(wave[None], dtype=np.complex64)


def aperture_of(mean: npt.NDArray[np.float64], bad_pixels: npt.NDArray[np.bool_]) -> Aperture:
    """Return the aperture of a mean pattern ``(N, N)``; bad pixels are replaced by the median of their neighbours."""
    filled = np.where(bad_pixels, 0.0, mean)
    if bad_pixels.any():
        known = np.where(bad_pixels, np.nan, mean)
        filled = np.where(bad_pixels, _neighbour_median(known), mean)
    y, x = np.indices(mean.shape)
    total = filled.sum()
    centre = [(filled * axis).sum() / total for axis in (y, x)]
    radius = np.hypot(y - centre[0], x - centre[1]).ravel()
    order = np.argsort(radius)
    energy = np.cumsum(filled.ravel()[order]) / total
    edge = max(float(radius[order][np.searchsorted(energy, EDGE_ENERGY)]), 1.0)
    return Aperture(filled, edge, _stop_radius(filled.ravel(), radius, edge))


def _stop_radius(counts: npt.NDArray[np.float64], radius: npt.NDArray[np.float64], edge: float) -> float:
    """Return the radius up to which the rings about the centre are dark."""
    rings = radius.astype(np.int64)
    inside = rings <= int(edge)
    profile = np.bincount(rings[inside], weights=counts[inside]) / np.maximum(np.bincount(rings[inside]), 1)
    bright = np.flatnonzero(profile > STOP_LEVEL * np.percentile(profile, 90))
    return float(bright[0]) if bright.size and bright[0] > 1 else 0.0


def _neighbour_median(image: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the median of the known pixels of each 5 x 5 square, 0 where none is known; NaN marks unknown pixels."""
    padded = np.pad(image, 2, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5)).reshape(*image.shape, 25)
    result = median_filter(np.nan_to_num(image), 5)
    unknown = np.isnan(image)
    chosen = windows[unknown]
    known = ~np.isnan(chosen)
    filled = np.zeros(len(chosen))
    filled[known.any(axis=1)] = np.nanmedian(chosen[known.any(axis=1)], axis=1)
    result[unknown] = filled
    return np.asarray(result)
