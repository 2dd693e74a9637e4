"""Smoothing that suits a dose and an overlap.

Photon noise of an object pixel that ``W`` photons lit has the variance ``1 / W``. Two numbers that are known before
the first step decide: the photons ``W`` on a typical lit pixel, and the overlap, the mean number of positions on a
pixel (``I_j`` is the intensity of the probe at position ``j``)::

    overlap = sum W^2 / sum_j I_j^2

which is 1 where no positions overlap. The metrics of a result compute it for each pixel
(``ReconstructionMetrics.overlap``), from the photons of every position, which are not known before.

The strength of the total variation is ``.25 sqrt(W)`` photons, and 4 at most: in its units, photons, noise counts as
``sqrt(W)``. If it grew on, discs at 10^6 photons would gain, but on a strong texture of 2 pixels the R-factor rose by a
tenth.

Cosine blocks take a share of the smoothing (:mod:`.regularizers`):

- **Little overlap** (below ``LEAST_OVERLAP``): one half, with a threshold of 2 standard deviations. There are about as
  many unknowns as equations, so that errors are larger than photon noise at any dose.
- **Faint** (``W`` below ``FAINT``): one half up to ``VERY_FAINT`` photons, then less, linear in ``log W``, with
  a threshold of 1.
- **Else**: none, which costs less.

The numbers have no derivation: they were chosen on seven objects (photograph, text, grass and brick, star, noise
correlated over 2 pixels, discs, smooth texture) from 3e2 to 1e4 photons per pattern, and on scans with 40 and 25 %
overlap at 1e6 photons (:doc:`/benchmarks`).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ..metrics.overlap import LEAST_OVERLAP
from ..types import Smoothing

FACTOR = 0.25
"""Strength of the total variation over the square root of the photons per lit pixel."""
LARGEST_STRENGTH = 4.0
"""Photons."""
VERY_FAINT = 30.0
FAINT = 350.0
"""Photons per lit pixel below which cosine blocks are used."""
LARGEST_SHARE = 0.5
FAINT_THRESHOLD = 1.0
SPARSE_THRESHOLD = 2.0
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
    strength = min(FACTOR * math.sqrt(photons_per_pixel), LARGEST_STRENGTH)
    if photons_per_pixel == 0:
        return Smoothing()
    if overlap < LEAST_OVERLAP:
        return Smoothing(strength, SPARSE_THRESHOLD, LARGEST_SHARE)
    share = LARGEST_SHARE * min(1.0, math.log(FAINT / photons_per_pixel) / math.log(FAINT / VERY_FAINT))
    return Smoothing(strength, FAINT_THRESHOLD, share) if share > 0 else Smoothing(strength)


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
