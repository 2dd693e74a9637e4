"""A part of a scan, drawn at random."""

from __future__ import annotations

import numpy as np

from .scan import RawScan


def select_subsample(scan: RawScan, number: int, seed: int) -> RawScan:
    """``number`` positions of ``scan``, drawn without replacement, in the order of the scan and on its object grid.

    The scan itself where ``number`` is 0 or at least its size. The same scan, number and seed give the same positions.
    """
    if not 0 < number < scan.size:
        return scan
    drawn = np.random.default_rng(seed).choice(scan.size, size=number, replace=False)
    return scan.select(np.sort(drawn))
