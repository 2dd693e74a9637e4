"""Smooth and mask the probe of a scan before training or reconstruction.

The photon scale of the probe is set in :mod:`~ptychopinn_torch_plugin.data.tensors`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ..config import ProbeConfig
from ..errors import InputError
from .scan import RawScan


def prepared(scan: RawScan, config: ProbeConfig) -> RawScan:
    """Return ``scan`` with its probe smoothed and masked; the scan itself where ``config`` asks for neither.

    The mask is applied last, so that the probe is exactly zero outside the disk. Only the probe changes.

    Raises:
        InputError: the probe is zero inside the disk.
    """
    if not config.smoothing_sigma and not config.mask_radius:
        return scan
    modes = smoothed(scan.probe, config.smoothing_sigma) if config.smoothing_sigma else scan.probe
    if config.mask_radius:
        modes = np.where(disk(modes, config.mask_radius), modes, 0)
    if not modes.any():
        raise InputError(
            f'{scan.name}: the probe is zero inside a disk of {config.mask_radius:g} pixels: raise the mask radius.'
        )
    return replace(scan, probe=modes)


def smoothed(modes: npt.NDArray[np.complexfloating], sigma: float) -> npt.NDArray[np.complexfloating]:
    """Convolve every mode of ``modes`` ``(M, H, W)`` with a Gaussian of standard deviation ``sigma`` in pixels.

    The complex wave is convolved, not its modulus; outside of the array it is taken as zero. The dtype is kept.
    """
    from scipy.ndimage import gaussian_filter  # few runs need it, and its import takes long

    widths = (0.0, sigma, sigma)
    parts = [gaussian_filter(part.astype(np.float64), widths, mode='constant') for part in (modes.real, modes.imag)]
    return np.asarray((parts[0] + 1j * parts[1]).astype(modes.dtype))


def disk(modes: npt.NDArray[np.complexfloating], radius: float) -> npt.NDArray[np.bool_]:
    """Return the mask ``(H, W)`` of pixels within ``radius`` pixels of the centre of mass of ``modes`` ``(M, H, W)``.

    The centre of mass is that of the intensity, summed over all modes.
    """
    # Scaled first, because the squares of very small or large probes exceed the range of single precision.
    power = np.square(np.abs(modes).astype(np.float64) / float(np.abs(modes).max())).sum(axis=0)
    y, x = np.indices(power.shape)
    centre_y, centre_x = (float((power * axis).sum() / power.sum()) for axis in (y, x))
    # 1e-6: rounding of the centre must not exclude pixels exactly on the edge.
    return np.asarray(np.square(y - centre_y) + np.square(x - centre_x) <= radius**2 + 1e-6)
