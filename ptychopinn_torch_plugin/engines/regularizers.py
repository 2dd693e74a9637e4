"""Total variation of the object, with a strength in photons.

After the step ``Z`` of the solver, the object is the proximal point in the metric of the photons ``W`` on each pixel::

    O = argmin  1/2 sum W |O - Z|^2 + lambda TV(O)

Because ``W`` counts photons, one ``lambda`` serves every dose: a bright scan hardly changes, a faint one is smoothed
according to its noise. The dual problem is solved by a few steps
(:mod:`ptychopinn_torch_plugin.physics.total_variation`), and the dual variable is kept from one epoch to the next.

``Z`` is the step along a preconditioned direction with a low-frequency part, so this is not the proximal gradient
method of one objective: the strength (4 photons by default) was chosen by the quality of scans at 10^4 photons per
pattern (:doc:`/benchmarks`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..physics.kernels.reference import REFERENCE
from ..physics.kernels.sums import Kernels

INNER_STEPS = 8
"""Dual steps in an epoch; the dual variable is kept, so a few are enough."""


class TotalVariation:
    """The proximal step of total variation.

    Args:
        strength: ``lambda``, photons.
        like: object array, ``(h, w)`` complex.
        kernels: what computes it.
    """

    def __init__(self, strength: float, like: Tensor, kernels: Kernels = REFERENCE) -> None:
        self._strength = strength
        self._kernels = kernels
        self._dual_y, self._dual_x = torch.zeros_like(like), torch.zeros_like(like)

    def __call__(self, object_array: Tensor, photons: Tensor) -> Tensor:
        """Return the proximal point of ``object_array`` ``(h, w)`` complex for ``photons`` ``(h, w)`` real."""
        if self._strength == 0:
            return object_array
        ratio = self._strength / photons
        return self._kernels.proximal_point(object_array, ratio, self._dual_y, self._dual_x, INNER_STEPS)
