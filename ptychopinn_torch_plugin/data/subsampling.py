"""Draw a part of a scan at random."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .scan import RawScan


def select_subsample(scan: RawScan, number: int, seed: int) -> RawScan:
    """Draw ``number`` positions of ``scan`` without replacement; order and object grid are those of the scan.

    Return the scan itself where ``number`` is 0 or at least its size. Equal arguments give equal positions.
    """
    return scan.select(subsample_indices(scan.size, number, seed)) if 0 < number < scan.size else scan


def subsample_indices(size: int, number: int, seed: int) -> npt.NDArray[np.int64]:
    """Draw ``number`` of ``size`` positions without replacement; return their indices, ascending, ``(number,)``."""
    return np.sort(np.random.default_rng(seed).choice(size, size=number, replace=False))
