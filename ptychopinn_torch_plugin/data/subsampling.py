"""Draw a part of a scan at random."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .scan import RawScan


def select_subsample(scan: RawScan, number: int, seed: int) -> RawScan:
    """Return ``number`` positions of ``scan``, drawn without replacement, in its order and on its object grid.

    The scan itself is returned where ``number`` is 0 or at least its size. The same scan, number and seed give the same
    positions.
    """
    return scan.select(subsample_indices(scan.size, number, seed)) if 0 < number < scan.size else scan


def subsample_indices(size: int, number: int, seed: int) -> npt.NDArray[np.int64]:
    """Draw ``number`` of ``size`` positions without replacement; returns their indices, ascending, ``(number,)``."""
    return np.sort(np.random.default_rng(seed).choice(size, size=number, replace=False))
