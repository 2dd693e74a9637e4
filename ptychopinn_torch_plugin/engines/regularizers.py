"""Total variation of the object, with a strength in photons.

After the step ``Z`` of the solver, the object is the proximal point in the metric of the photons ``W`` on each pixel::

    O = argmin  1/2 sum W |O - Z|^2 + lambda TV(O)

Because ``W`` counts photons, one ``lambda`` serves every dose: a bright scan hardly changes, a faint one is smoothed
according to its noise. The dual problem is solved by projected gradient steps, and the dual variable is kept from one
epoch to the next (A. Chambolle, J. Math. Imaging Vis. 20, 89 (2004))::

    p <- (p + t grad(Z + lambda/W div p)) / max(1, |.|),   t = W / (8 lambda)
    O  = Z + lambda/W div p

``Z`` is the step along a preconditioned direction with a low-frequency part, so this is not the proximal gradient
method of one objective: the strength (4 photons by default) was chosen by the quality of scans at 10^4 photons per
pattern (:doc:`/benchmarks`).
"""

from __future__ import annotations

import torch
from torch import Tensor

INNER_STEPS = 8
"""Dual steps in an epoch; the dual variable is kept, so a few are enough."""


class TotalVariation:
    """The proximal step of total variation.

    Args:
        strength: ``lambda``, photons.
        like: object array, ``(h, w)`` complex.
    """

    def __init__(self, strength: float, like: Tensor) -> None:
        self._strength = strength
        self._dual_y, self._dual_x = torch.zeros_like(like), torch.zeros_like(like)

    def __call__(self, object_array: Tensor, photons: Tensor) -> Tensor:
        """Return the proximal point of ``object_array`` ``(h, w)`` complex for ``photons`` ``(h, w)`` real."""
        if self._strength == 0:
            return object_array
        ratio = self._strength / photons
        # A difference joins two pixels: the larger ratio gives the step that is stable for both (the bound is 1/8).
        largest = torch.maximum(ratio, torch.maximum(ratio.roll(-1, 0), ratio.roll(-1, 1)))
        for _ in range(INNER_STEPS):
            self._ascend(object_array + ratio * self._divergence(), 1.0 / (8.0 * largest))
        return object_array + ratio * self._divergence()

    def _ascend(self, object_array: Tensor, size: Tensor) -> None:
        dual_y = self._dual_y + size * (object_array.roll(-1, 0) - object_array)
        dual_x = self._dual_x + size * (object_array.roll(-1, 1) - object_array)
        length = (_squared_modulus(dual_y) + _squared_modulus(dual_x)).sqrt().clamp_min(1.0)
        self._dual_y, self._dual_x = dual_y / length, dual_x / length

    def _divergence(self) -> Tensor:
        return self._dual_y - self._dual_y.roll(1, 0) + self._dual_x - self._dual_x.roll(1, 1)


def _squared_modulus(wave: Tensor) -> Tensor:
    return wave.real.square() + wave.imag.square()
