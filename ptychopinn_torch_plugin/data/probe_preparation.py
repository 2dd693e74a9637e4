"""What is done to the given probe before anything else: smoothed, then masked.

The photon scale is not set here but where the scan becomes tensors (:mod:`~ptychopinn_torch_plugin.data.tensors`).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from ..config import ProbeConfig
from ..errors import InputError
from .scan import RawScan


def prepared(scan: RawScan, config: ProbeConfig) -> RawScan:
    """``scan`` with its probe smoothed and masked as ``config`` asks; the scan itself where it asks for neither.

    The mask comes last, so that the probe is exactly zero outside the disk. Nothing but the probe changes.

    Raises:
        InputError: nothing of the probe is left inside the disk.
    """
    if not config.smoothing_sigma and not config.mask_radius:
        return scan
    modes = smoothed(scan.probe, config.smoothing_sigma) if config.smoothing_sigma else scan.probe
    if config.mask_radius:
        modes = np.where(disk(modes, config.mask_radius), modes, 0)
    if not modes.any():
        raise InputError(
            f'{scan.name}: nothing of the probe is left inside a disk of {config.mask_radius:g} pixels: raise the mask '
            'radius.'
        )
    return replace(scan, probe=modes)


def smoothed(modes: npt.NDArray[np.complexfloating], sigma: float) -> npt.NDArray[np.complexfloating]:
    """Every mode of ``modes`` ``(M, H, W)`` convolved with a Gaussian of standard deviation ``sigma`` in pixels.

    The wave itself is convolved, not its modulus; it counts as zero outside of its array. The dtype is kept.
    """
    widths = (0.0, sigma, sigma)
    parts = [gaussian_filter(part.astype(np.float64), widths, mode='constant') for part in (modes.real, modes.imag)]
    return np.asarray((parts[0] + 1j * parts[1]).astype(modes.dtype))


def disk(modes: npt.NDArray[np.complexfloating], radius: float) -> npt.NDArray[np.bool_]:
    """Pixels whose centre is at most ``radius`` pixels from the centre of power of ``modes`` ``(M, H, W)``; ``(H, W)``.

    The centre of power is the mean pixel, weighted by the power of all modes together.
    """
    # Scaled first: neither the squares of tiny nor those of huge probes fit into single precision.
    power = np.square(np.abs(modes).astype(np.float64) / float(np.abs(modes).max())).sum(axis=0)
    y, x = np.indices(power.shape)
    centre_y, centre_x = (float((power * axis).sum() / power.sum()) for axis in (y, x))
    # The rounding of the centre does not decide over pixels right on the edge.
    return np.asarray(np.square(y - centre_y) + np.square(x - centre_x) <= radius**2 + 1e-6)
