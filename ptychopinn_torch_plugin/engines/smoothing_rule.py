"""Smoothing that suits a dose and an overlap.

Photon noise of an object pixel that ``W`` photons lit has the variance ``1 / W``. Two numbers that are known before
the first step decide: the photons ``W`` on a typical lit pixel, and the overlap, the mean number of positions on a
pixel (``I_j`` is the intensity of the probe at position ``j``)::

    overlap = sum W^2 / sum_j I_j^2

which is 1 where no positions overlap.

- **Little overlap** (below ``LEAST_OVERLAP``): cosine blocks with a threshold of ``SPARSE_THRESHOLD``. There are about
  as many unknowns as equations, so that noise and ambiguities have more than the variance of photons alone.
- **Faint** (``W`` below ``FAINT``): cosine blocks with the threshold ``.7 + .2 log10 W``, at least ``.5``. It was
  measured on five objects (photograph, text, grass and brick, star, noise correlated over 2 pixels) from 3e2 to 1e4
  photons per pattern (``benchmarks/faint``). The increase has no derivation: on very faint scans, a smaller threshold
  keeps texture.
- **Else**: total variation of ``BRIGHT`` photons, which costs less.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ..types import Smoothing

BRIGHT = 4.0
"""Strength of the total variation of bright scans, photons."""
FAINT = 1000.0
"""Photons per lit pixel below which cosine blocks are used."""
LEAST_THRESHOLD = 0.5
LEAST_OVERLAP = 3.0
"""Positions on a pixel below which cosine blocks are used at any dose."""
SPARSE_THRESHOLD = 1.5
WELL_LIT = 0.5
"""Share of the mean illumination of the lit pixels above which a pixel counts."""


def smoothing_for(photons_per_pixel: float, overlap: float) -> Smoothing:
    """Return the smoothing for so many photons and so many positions on a typical lit pixel of the object.

    Raises:
        ValueError: a number is negative or not finite.
    """
    for name, value in (('photons_per_pixel', photons_per_pixel), ('overlap', overlap)):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f'{name} is {value}: give a finite number, 0 or more.')
    if photons_per_pixel == 0:
        return Smoothing()
    if overlap < LEAST_OVERLAP:
        return Smoothing(threshold=SPARSE_THRESHOLD)
    if photons_per_pixel < FAINT:
        return Smoothing(threshold=max(LEAST_THRESHOLD, 0.7 + 0.2 * math.log10(photons_per_pixel)))
    return Smoothing(photons=BRIGHT)


def photons_per_lit_pixel(photons: npt.NDArray[np.floating]) -> float:
    """Return the photons on a typical lit pixel: the median over the well lit ones, 0 where nothing is lit.

    Args:
        photons: illumination of the object array, ``(h, w)``, photons of all patterns on each pixel.
    """
    lit = photons[photons > 0]
    if not lit.size:
        return 0.0
    return float(np.median(lit[lit > WELL_LIT * lit.mean(dtype=np.float64)]))


def mean_overlap(photons: npt.NDArray[np.floating], probe_intensity: npt.NDArray[np.floating], positions: int) -> float:
    """Return the mean number of positions that illuminate a pixel, 0 where nothing is lit.

    Args:
        photons: as in :func:`photons_per_lit_pixel`.
        probe_intensity: ``(H, W)``, photons of one pattern on each pixel.
        positions: their number.
    """
    alone = positions * float(np.square(probe_intensity, dtype=np.float64).sum())
    return float(np.square(photons, dtype=np.float64).sum()) / alone if alone else 0.0
