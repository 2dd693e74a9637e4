"""Regularisers of the object: what the solver applies after its step.

Total variation
    After the step ``Z`` of the solver, the object is the proximal point in the metric of the photons ``W`` on each
    pixel::

        O = argmin  1/2 sum W |O - Z|^2 + lambda TV(O)

    Because ``W`` counts photons, one ``lambda`` serves every dose: a bright scan hardly changes, a faint one is
    smoothed according to its noise. The dual problem is solved by a few steps
    (:mod:`ptychopinn_torch_plugin.physics.total_variation`), and the dual variable is kept from one epoch to the next.

Total variation and cosine blocks
    ``O`` is the weighted mean of that proximal point and of the estimate ``C`` from ``Z`` by hard thresholds on cosine
    transforms of overlapping blocks (:mod:`ptychopinn_torch_plugin.physics.cosine_shrinkage`)::

        O = (1 - c) prox_TV(Z) + c C(Z)

    In place of a proximal operator, this is a denoiser that knows the variance ``1 / W`` of the noise
    (S. V. Venkatakrishnan, C. A. Bouman & B. Wohlberg, Plug-and-play priors for model based reconstruction, IEEE
    GlobalSIP (2013)). Total variation suits sharp edges between flat areas, cosine blocks suit texture and smooth
    areas; the errors of the two differ, so their mean is better than either. The blocks lie at other places in every
    epoch, so the result contains the running mean ``M`` of the last epochs, the more of it the larger their share::

        M <- M + (O - M) / min(epoch, 8),    result = O + min(1, 2 c) (M - O)

``Z`` is the step along a preconditioned direction with a low-frequency part, so neither is the proximal gradient
method of one objective. Both were chosen by measured quality (:doc:`/benchmarks`).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..physics.cosine_shrinkage import CosineShrinkage
from ..physics.kernels.reference import REFERENCE
from ..physics.kernels.sums import Kernels
from ..types import Smoothing

INNER_STEPS = 8
"""Dual steps in an epoch; the dual variable is kept, so a few are enough."""
AVERAGED_EPOCHS = 8
"""Epochs over which the running mean of cosine blocks extends."""


class Regularizer(Protocol):
    """What the solver applies to the object after each step."""

    def __call__(self, object_array: Tensor, photons: Tensor) -> Tensor:
        """Return the regularised ``object_array`` ``(h, w)`` complex, for ``photons`` ``(h, w)`` real."""

    def result(self, object_array: Tensor) -> Tensor:
        """Return the object to hand out after an epoch that gave ``object_array``."""


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

    def result(self, object_array: Tensor) -> Tensor:
        """Return ``object_array``."""
        return object_array


class CosineBlocks:
    """The mean of total variation and cosine blocks, and the running mean of the objects.

    Args:
        smoothing: strength, threshold and share, all positive.
        like: object array, ``(h, w)`` complex.
        kernels: what computes the total variation.
    """

    def __init__(self, smoothing: Smoothing, like: Tensor, kernels: Kernels = REFERENCE) -> None:
        self._total_variation = TotalVariation(smoothing.photons, like, kernels)
        self._shrink = CosineShrinkage(smoothing.threshold)
        self._share = smoothing.cosine_share
        self._epochs = 0
        self._mean: Tensor | None = None

    def __call__(self, object_array: Tensor, photons: Tensor) -> Tensor:
        """Return the estimate of ``object_array`` ``(h, w)`` complex for ``photons`` ``(h, w)`` real, positive."""
        flat, blocks = self._total_variation(object_array, photons), self._shrink(object_array, photons)
        estimate = flat + self._share * (blocks - flat)
        self._epochs += 1
        mean = estimate if self._mean is None else self._mean
        self._mean = mean + (estimate - mean) / min(self._epochs, AVERAGED_EPOCHS)
        return estimate

    def result(self, object_array: Tensor) -> Tensor:
        """Return the running mean, with the weight of its share, or ``object_array`` before the first epoch."""
        return object_array if self._mean is None else object_array.lerp(self._mean, min(1.0, 2 * self._share))


def regularizer_for(smoothing: Smoothing, like: Tensor, kernels: Kernels = REFERENCE) -> Regularizer:
    """Return the regulariser of ``smoothing`` for an object array ``like`` ``(h, w)`` complex."""
    if smoothing.cosine_share:
        return CosineBlocks(smoothing, like, kernels)
    return TotalVariation(smoothing.photons, like, kernels)
