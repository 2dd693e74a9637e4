"""How well simulated patterns explain the measured ones: mean deviance per measured pixel.

All likelihoods are scaled alike: about 1 where the model is right and the counts are many, less where they are few.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

DARK_FLOOR = 1e-3
"""Counts added to the model where the Poisson likelihood takes its logarithm."""


def amplitude_deviance(model: Tensor, measured: Tensor, good_pixels: Tensor) -> Tensor:
    """Four times the squared amplitude difference, averaged over the measured pixels.

    The square root stabilises the variance of Poisson counts at 1/4 (F. J. Anscombe, Biometrika 35, 246 (1948)), so
    this is the deviance of a Gaussian model of the amplitudes.

    Args:
        model: model amplitudes, ``(..., H, W)`` real, square roots of photons.
        measured: measured amplitudes, same shape.
        good_pixels: 1 where measured, else 0, ``(H, W)``.

    Returns:
        Scalar, dimensionless.
    """
    deviance = 4.0 * (model - measured).square()
    return _mean_over_good(deviance, good_pixels)


def poisson_deviance(model: Tensor, measured: Tensor, good_pixels: Tensor) -> Tensor:
    """Poisson deviance of the counts, averaged over the measured pixels.

    Twice the negative log-likelihood ``lambda - n log(lambda)`` less its value at ``lambda = n`` (P. McCullagh &
    J. A. Nelder, Generalized Linear Models, 2nd ed., sec. 2.3). Arguments and return value as in
    :func:`amplitude_deviance`; ``model`` and ``measured`` are amplitudes here too.
    """
    counts = measured.square()
    deviance = poisson_cost(model.square(), counts) - saturated_cost(counts)
    return _mean_over_good(deviance, good_pixels)


def poisson_cost(expected: Tensor, counts: Tensor) -> Tensor:
    """The part of the Poisson deviance that depends on the model, ``2 (lambda - n log lambda)``, pixel by pixel."""
    # A dark model pixel that caught a photon would cost infinity: the floor is far below one photon.
    floored = expected + DARK_FLOOR
    return 2.0 * (floored - counts * floored.log())


def saturated_cost(counts: Tensor) -> Tensor:
    """What :func:`poisson_cost` is for a model that is right everywhere, ``2 (n - n log n)``."""
    # n log(n) is 0 at n = 0; the logarithm itself must stay finite there, or its gradient is not.
    return 2.0 * (counts - counts * torch.where(counts > 0, counts, 1.0).log())


def absolute_deviance(model: Tensor, measured: Tensor, good_pixels: Tensor) -> Tensor:
    """Absolute amplitude difference, averaged over the measured pixels and scaled by ``sqrt(2 pi)``.

    A normal variable of variance 1/4 has the mean modulus ``1 / sqrt(2 pi)``, so 1 is the noise limit here, too. What
    no model explains (a dead region, a stray reflection) counts less than in :func:`amplitude_deviance`, whose
    arguments these are.
    """
    return _mean_over_good(math.sqrt(2 * math.pi) * (model - measured).abs(), good_pixels)


def _mean_over_good(values: Tensor, good_pixels: Tensor) -> Tensor:
    patterns = values.numel() // good_pixels.numel()
    return (values * good_pixels).sum() / (good_pixels.sum() * patterns)


DEVIANCES = {'amplitude': amplitude_deviance, 'poisson': poisson_deviance, 'mae': absolute_deviance}
"""The likelihoods by the name they have in the configuration."""
