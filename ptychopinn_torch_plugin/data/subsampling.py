"""Draw a part of a scan at random."""

from __future__ import annotations

import numpy as np

from .scan import RawScan


def select_subsample(scan: RawScan, number: int, seed: int) -> RawScan:
    """Draw ``number`` positions of ``scan`` without replacement; order and object grid are those of the scan.

    Return the scan itself where ``number`` is 0 or at least its size. Equal arguments give equal positions.
    """
    if not 0 < number < scan.size:
        return scan
    drawn = np.random.default_rng(seed).choice(scan.size, size=number, replace=False)
    return scan.select(np.sort(drawn))
