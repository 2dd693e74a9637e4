"""A prior for faint scans: total variation of the object, in photons.

The object after a step is the minimiser of ``1/2 sum W |O - Z|^2 + lambda TV(O)``, where ``Z`` is the step and ``W``
the photons that lit each pixel. Because ``W`` counts photons, one ``lambda`` fits every dose: bright scans hardly feel
it, faint ones are smoothed as far as their noise asks for. Solved in the dual, whose variable is kept from one epoch to
the next (A. Chambolle, J. Math. Imaging Vis. 20, 89 (2004)).
"""

from __future__ import annotations

import torch
from torch import Tensor

INNER_STEPS = 8
"""Dual steps an epoch; the dual variable is kept, so a few are enough."""


class TotalVariation:
    """The proximal step of the prior.

    Args:
        strength: ``lambda``, in photons.
        like: canvas, ``(h, w)`` complex.
    """

    def __init__(self, strength: float, like: Tensor) -> None:
        self._strength = strength
        self._dual_y, self._dual_x = torch.zeros_like(like), torch.zeros_like(like)

    def __call__(self, canvas: Tensor, photons: Tensor) -> Tensor:
        """The canvas ``(h, w)`` nearest to ``canvas`` in the metric ``photons`` ``(h, w)`` that the prior allows."""
        if self._strength == 0:
            return canvas
        reach = self._strength / photons
        # A difference joins two pixels: the stabler of their two steps is safe for both (the bound is 1/8).
        safe = torch.maximum(reach, torch.maximum(reach.roll(-1, 0), reach.roll(-1, 1)))
        for _ in range(INNER_STEPS):
            smoothed = canvas + reach * self._divergence()
            self._ascend(smoothed, 1.0 / (8.0 * safe))
        return canvas + reach * self._divergence()

    def _ascend(self, canvas: Tensor, size: Tensor) -> None:
        dual_y = self._dual_y + size * (canvas.roll(-1, 0) - canvas)
        dual_x = self._dual_x + size * (canvas.roll(-1, 1) - canvas)
        length = (_squared(dual_y) + _squared(dual_x)).sqrt().clamp_min(1.0)
        self._dual_y, self._dual_x = dual_y / length, dual_x / length

    def _divergence(self) -> Tensor:
        return self._dual_y - self._dual_y.roll(1, 0) + self._dual_x - self._dual_x.roll(1, 1)


def _squared(wave: Tensor) -> Tensor:
    """``|wave|^2`` without the root that ``abs`` would take."""
    return wave.real.square() + wave.imag.square()
