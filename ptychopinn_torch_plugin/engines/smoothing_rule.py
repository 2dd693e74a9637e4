"""Strength of total variation that suits a dose.

Photon noise of an object pixel that ``W`` photons lit has the variance ``1 / W``, and a difference of neighbouring
pixels has it twice. In the units of :class:`~.regularizers.TotalVariation`, photons, noise therefore counts as
``sqrt(W)``, and on faint scans the strength grows likewise. The factor was measured on five objects (photograph,
text, grass and brick, star, noise correlated over 2 pixels) from 3e2 to 1e6 photons per pattern
(``benchmarks/faint``): factors of .16 and .22 differ by .03 at most in mean similarity at every dose, the smaller one
being better on texture of 2 pixels. ``.25`` also keeps the quality of discs and smooth texture at 10^4 photons, where
a fixed strength of 4 photons was the default before.

Above ``FAINT`` photons the strength is constant, 4 photons. If it grew on, the bias of total variation would be the
same multiple of the photon noise at every dose: discs at 10^6 photons gain by that, but on a strong texture of 2
pixels the R-factor rose by a tenth.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

FACTOR = 0.25
"""Strength over the square root of the photons per lit pixel, up to ``FAINT``."""
FAINT = 256.0
"""Photons per lit pixel above which the strength is constant."""
WELL_LIT = 0.5
"""Share of the mean illumination of the lit pixels above which a pixel counts."""


def smoothing_for(photons_per_pixel: float) -> float:
    """Return the strength of total variation, in photons, for so many photons on a typical lit pixel of the object.

    Raises:
        ValueError: the number is negative or not finite.
    """
    if not (math.isfinite(photons_per_pixel) and photons_per_pixel >= 0):
        raise ValueError(f'photons_per_pixel is {photons_per_pixel}: give a finite number of photons, 0 or more.')
    return FACTOR * math.sqrt(min(photons_per_pixel, FAINT))


def photons_per_lit_pixel(photons: npt.NDArray[np.floating]) -> float:
    """Return the photons on a typical lit pixel: the median over the well lit ones, 0 where nothing is lit.

    Args:
        photons: illumination of the object array, ``(h, w)``, photons of all patterns on each pixel.
    """
    lit = photons[photons > 0]
    if not lit.size:
        return 0.0
    return float(np.median(lit[lit > WELL_LIT * lit.mean(dtype=np.float64)]))
