"""Stitching: the object patches of many positions are averaged into one object.

Every patch lies at whole pixels of the object (subpixel positions shift the probe) and is weighted by the photons that
its position put on each pixel: ``O = sum_j R_j^T(w_j O_j) / sum_j R_j^T w_j`` with ``w_j = sum_m |P_jm|^2``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..physics.forward import power
from ..physics.patches import accumulate_patches
from ..physics.probe import COVERAGE_FLOOR, is_illuminated


def mask_object(object_array: Tensor, photons: Tensor, floor: float = COVERAGE_FLOOR) -> Tensor:
    """Return ``object_array`` ``(h, w)`` complex with 1 where ``photons`` ``(h, w)`` did not illuminate it.

    ``floor`` as in :func:`~ptychopinn_torch_plugin.physics.probe.is_illuminated`.
    """
    return torch.where(is_illuminated(photons, floor), object_array, torch.ones_like(object_array))


class Stitcher:
    """Weighted mean of patches in one object array.

    Windows that were reconstructed separately differ by a constant phase, which no pattern determines;
    :meth:`overlap` measures it, so that the phase of a window can be adapted to the object so far.
    """

    def __init__(self, shape: tuple[int, int], device: torch.device) -> None:
        self._shape = shape
        self._sum = torch.zeros((1, *shape), dtype=torch.complex64, device=device)
        self._weight = torch.zeros((1, *shape), dtype=torch.float32, device=device)

    def overlap(self, object_array: Tensor, photons: Tensor, origin: tuple[int, int]) -> Tensor:
        """Return the weighted product of the object so far and the conjugate of another one, a complex scalar.

        Its phase is the phase of the object so far relative to the other; it is zero where they do not overlap.
        Arguments as in :meth:`add_object`.
        """
        known, own = self._common_part(object_array.shape, origin)
        other = object_array[own]
        return (photons[own] * self._sum[0][known] * other.conj()).sum()

    def add_object(self, object_array: Tensor, photons: Tensor, origin: tuple[int, int]) -> None:
        """Add the patches of all positions of one object.

        They are parts of one array, so their weighted sum is that array times the sum of their weights.

        Args:
            object_array: ``(h, w)`` complex64; what lies outside this object array has no photons, and is cut off.
            photons: illumination by the positions, ``(h, w)`` float32.
            origin: pixel (y, x) of this object array at which it begins.
        """
        target, own = self._common_part(object_array.shape, origin)
        self._sum[0][target] += object_array[own] * photons[own]
        self._weight[0][target] += photons[own]

    def _common_part(
        self, shape: torch.Size, origin: tuple[int, int]
    ) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Return the part of this array that an array of ``shape`` at ``origin`` covers, here and there."""
        here, there = [], []
        for start, side, limit in zip(origin, shape, self._shape, strict=True):
            first, last = max(start, 0), min(start + side, limit)
            here.append(slice(first, max(first, last)))
            there.append(slice(first - start, max(first, last) - start))
        return (here[0], here[1]), (there[0], there[1])

    def add(self, patches: Tensor, probes: Tensor, patch_origins: Tensor) -> None:
        """Add patches.

        Args:
            patches: ``(1, C, H, W)`` complex64.
            probes: ``(1, C, M, H, W)`` complex64, probes at the positions; their power is the weight.
            patch_origins: ``(1, C, 2)`` int64, in this object array.
        """
        weight = power(probes)
        self._sum += accumulate_patches(patches * weight, patch_origins, self._shape)
        self._weight += accumulate_patches(weight, patch_origins, self._shape)

    @property
    def photons(self) -> Tensor:
        """Sum of the weights, ``(h, w)`` float32."""
        return self._weight[0]

    def result(self, floor: float = COVERAGE_FLOOR) -> Tensor:
        """Return the object so far, ``(h, w)`` complex64; ``floor`` as in :func:`mask_object`."""
        return mask_object(self._sum[0] / self.photons.clamp_min(1e-30), self.photons, floor)
