"""Smaller scans for searches: the central half of the detector (a coarser object), and a compact part of a scan."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ..data.grouping import compact_windows
from ..data.scan import RawScan

MIN_SIDE_PX = 32


def coarse_scan(scan: RawScan) -> tuple[RawScan, npt.NDArray[np.float64]]:
    """Crop the detector to its central half, 32 pixels at least.

    Returns:
        The scan with positions about 0 in coarse pixels and a transparent object, and the size (y, x) of a coarse pixel
        in fine pixels.
    """
    halved = [(side, min(side, max(MIN_SIDE_PX, side // 2))) for side in scan.pattern_shape]
    rows, columns = (slice(side // 2 - half // 2, side // 2 - half // 2 + half) for side, half in halved)
    factors = np.array([side / half for side, half in halved])
    spectrum = np.fft.fftshift(np.fft.fft2(scan.probe), axes=(-2, -1))[:, rows, columns]
    coarse = replace(
        scan,
        counts=scan.counts[:, rows, columns],
        positions=(scan.positions - scan.positions.mean(axis=0)) / factors,
        probe=np.fft.ifft2(np.fft.ifftshift(spectrum, axes=(-2, -1))),
        bad_pixels=scan.bad_pixels[rows, columns],
        object_guess=np.ones((1, 1), dtype=np.complex64),
        fresnel_numbers=(scan.fresnel_numbers[0] * factors[0] ** 2, scan.fresnel_numbers[1] * factors[1] ** 2),
    )
    return coarse, factors


def compact_part(scan: RawScan, limit: int) -> RawScan:
    """Return at most about ``limit`` neighbouring positions in the middle of the scan; all of a smaller scan."""
    return scan if scan.size <= limit else scan.select(compact_numbers(scan, limit))


def compact_numbers(scan: RawScan, limit: int) -> npt.NDArray[np.int64]:
    """Return the numbers of the positions of :func:`compact_part`, ``(k,)``, ascending."""
    if scan.size <= limit:
        return np.arange(scan.size)
    centre = scan.positions.mean(axis=0)
    windows = compact_windows(scan.positions, limit)
    inside = min(windows, key=lambda part: float(np.abs(scan.positions[part].mean(axis=0) - centre).sum()))
    return np.sort(inside)
