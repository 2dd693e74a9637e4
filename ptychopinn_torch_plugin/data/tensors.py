"""A scan on a device: the bridge from arrays (numpy, as measured) to the tensors that physics and networks use.

Patterns are held once, as they came; what a batch needs (square root, zero frequency moved to the corner, probes
shifted to their subpixel positions) is made when the batch is gathered.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import InputError
from ..physics.forward import Frames
from ..physics.probe import probes_at
from ..physics.probe_scale import fit_probe_scale
from ..physics.propagation import quadratic_phase
from .scan import RawScan, patch_bounds

CACHE_BYTES = 2 * 2**30
"""Whatever a run needs of all patterns at every step is kept in memory up to this size; else it is made again."""

SCALE_POSITIONS = 256
"""Positions that the photon scale is fitted on: evenly spread, more would not change the third digit."""


class ScanTensors:
    """One scan, ready to be cut into :class:`~.physics.forward.Frames` on ``device``.

    Args:
        scan: the validated scan; its empty patterns are left out here, so ``self.scan`` may have fewer positions.
        device: where batches go.
        probe: probe modes to use instead of the scan's, ``(M, H, W)`` complex, any scale.
        scale: factor for the probe as it comes; 0 fits the factor to the counts.

    Raises:
        InputError: no photon scale can be fitted.
    """

    def __init__(
        self,
        scan: RawScan,
        device: torch.device,
        probe: npt.NDArray[np.complexfloating] | None = None,
        scale: float = 0.0,
    ) -> None:
        self.scan = scan = scan.without_empty()
        self.device = device
        self.positions = scan.positions
        self.patch_origins, self.subpixel_shifts = patch_bounds(scan.positions, scan.pattern_shape)
        shape = scan.pattern_shape
        self.good_pixels = torch.from_numpy(np.fft.ifftshift(~scan.bad_pixels).astype(np.float32)).to(device)
        self._has_bad_pixels = bool(scan.bad_pixels.any())
        self.phase = quadratic_phase(scan.fresnel_numbers, shape).to(torch.complex64).to(device)
        modes = scan.probe if probe is None else probe
        self.probe = torch.from_numpy(_of_power_one(modes)).to(device)
        self.probe = self.probe * (scale * norm_of(modes) if scale else self._fit_scale())

    def frames(self, indices: npt.NDArray[np.integer], origin: npt.NDArray[np.integer]) -> Frames:
        """Gather one canvas' positions.

        Args:
            indices: ``(C,)`` positions of the scan.
            origin: ``(2,)`` (y, x), object pixel of the canvas' first pixel.

        Returns:
            Frames with ``B = 1`` on the device.
        """
        subpixel_shifts = torch.from_numpy(self.subpixel_shifts[indices].astype(np.float32)).to(self.device)
        patch_origins = torch.from_numpy(self.patch_origins[indices] - origin).to(self.device)
        return Frames(
            amplitudes=self.amplitudes(indices)[None],
            probes=probes_at(self.probe, subpixel_shifts, self.phase)[None],
            patch_origins=patch_origins[None],
            good_pixels=self.good_pixels,
        )

    def adopt(self, probe: Tensor, positions: npt.NDArray[np.float64]) -> None:
        """Go on with a probe ``(M, H, W)`` complex64 in photons, on the device, and positions ``(n, 2)``."""
        self.probe = probe
        self.positions = positions
        self.patch_origins, self.subpixel_shifts = patch_bounds(positions, self.scan.pattern_shape)

    def amplitudes(self, indices: npt.NDArray[np.integer]) -> Tensor:
        """Measured amplitudes of some positions, ``(C, H, W)`` float32, zero frequency at the corner, 0 where bad."""
        counts = np.asarray(self.scan.counts[indices], dtype=np.float32)
        centred = torch.from_numpy(counts).to(self.device)
        shifted = torch.fft.ifftshift(centred, dim=(-2, -1))
        if self._has_bad_pixels:  # they may hold anything, NaN included: they are replaced, not multiplied
            shifted = torch.where(self.good_pixels > 0, shifted, 0.0)
        amplitudes: Tensor = shifted.sqrt_()
        return amplitudes

    def extent(self, indices: npt.NDArray[np.integer]) -> tuple[npt.NDArray[np.int64], tuple[int, int]]:
        """Origin ``(2,)`` (y, x) and shape ``(h, w)`` of the smallest canvas that holds the frames of ``indices``."""
        patch_origins = self.patch_origins[indices]
        origin = patch_origins.min(axis=0)
        height, width = patch_origins.max(axis=0) - origin + np.array(self.scan.pattern_shape)
        return origin, (int(height), int(width))

    def _fit_scale(self) -> float:
        chosen = np.unique(np.linspace(0, self.scan.size - 1, min(self.scan.size, SCALE_POSITIONS)).astype(np.int64))
        chunks = np.array_split(chosen, math.ceil(chosen.size / 16))
        scale = fit_probe_scale(self.frames(chunk, np.zeros(2, np.int64)) for chunk in chunks)
        if not 0 < scale < math.inf:
            raise InputError(
                f'{self.scan.name}: the measured pixels hold no counts, or the probe sends no photons to them: check '
                'the bad-pixel mask, and that the patterns have their zero frequency at the centre.'
            )
        return scale


def norm_of(modes: npt.NDArray[np.complexfloating]) -> float:
    """Square root of the power of ``modes`` ``(M, H, W)``, in double precision."""
    return float(np.linalg.norm(modes.astype(np.complex128)))


def _of_power_one(modes: npt.NDArray[np.complexfloating]) -> npt.NDArray[np.complex64]:
    """``modes`` ``(M, H, W)`` of any scale, scaled to power one: float32 then holds for all conventions."""
    # First by the largest part, in the precision that came: neither squares nor complex64 hold every scale.
    largest = max(float(np.abs(modes.real).max()), float(np.abs(modes.imag).max()))
    near_one = np.ascontiguousarray(modes / largest, dtype=np.complex64)
    return np.asarray(near_one / np.linalg.norm(near_one))
