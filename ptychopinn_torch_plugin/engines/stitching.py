"""Stitching: patches of many positions become one object.

Every patch lies on whole pixels of the object (subpixel positions are on the probe), and counts with the photons that
its position put on each pixel: ``O = sum_j w_j O_j / sum_j w_j``, ``w_j = sum_m |P_jm|^2``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..physics.patches import gather, merge
from ..physics.probe import power

COVERAGE_FLOOR = 1e-3
"""A pixel counts as illuminated from this share of the brightest pixel's photons on."""


class Stitched(NamedTuple):
    """A stitched object on its canvas."""

    canvas: Tensor
    """``(h, w)`` complex64; exactly 1 where not covered."""
    coverage: Tensor
    """``(h, w)`` bool: pixels that were illuminated."""


def cover(canvas: Tensor, photons: Tensor, floor: float = COVERAGE_FLOOR) -> Stitched:
    """Set ``canvas`` ``(h, w)`` to 1 where ``photons`` ``(h, w)`` hardly came, and say where they did.

    ``floor`` is the share of the most photons on a pixel that counts as hardly any.
    """
    coverage = photons > floor * photons.max()
    return Stitched(torch.where(coverage, canvas, torch.ones_like(canvas)), coverage)


class Stitcher:
    """Accumulates patches on one canvas.

    Windows that were reconstructed apart differ by a constant phase, which no pattern fixes; :meth:`overlap` measures
    it, so that a new window can be turned to agree with what already lies under it.
    """

    def __init__(self, shape: tuple[int, int], device: torch.device) -> None:
        self._shape = shape
        self._sum = torch.zeros((1, *shape), dtype=torch.complex64, device=device)
        self._weight = torch.zeros((1, *shape), dtype=torch.float32, device=device)

    def overlap(self, patches: Tensor, probes: Tensor, patch_origins: Tensor) -> Tensor:
        """Weighted product of what is stitched so far with the conjugate of new patches, a complex scalar.

        Its phase turns the patches to the object so far; it is zero where they do not overlap. Arguments as in
        :meth:`add`.
        """
        known = gather(self._sum, patch_origins, (patches.shape[-2], patches.shape[-1]))
        return (power(probes) * known * patches.conj()).sum()

    def add(self, patches: Tensor, probes: Tensor, patch_origins: Tensor) -> None:
        """Add patches.

        Args:
            patches: ``(1, C, H, W)`` complex64.
            probes: ``(1, C, M, H, W)`` complex64, probes at the positions; their power weighs the patches.
            patch_origins: ``(1, C, 2)`` int64, on this canvas.
        """
        weight = power(probes)
        self._sum += merge(patches * weight, patch_origins, self._shape)
        self._weight += merge(weight, patch_origins, self._shape)

    def result(self, floor: float = COVERAGE_FLOOR) -> Stitched:
        """The object so far; ``floor`` as in :func:`cover`."""
        weight = self._weight[0]
        return cover(self._sum[0] / weight.clamp_min(1e-30), weight, floor)
