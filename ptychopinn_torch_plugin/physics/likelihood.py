"""How well simulated patterns explain the measured ones: mean deviance per measured pixel.

Both likelihoods are scaled alike: about 1 where the model is right and the counts are many, less where they are few.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
    # A dark model pixel that caught a photon would cost infinity: the floor is far below one photon.
    expected = model.square() + 1e-3
    # n log(n) is 0 at n = 0; the logarithm itself must stay finite there, or its gradient is not.
    log_counts = torch.where(counts > 0, counts, 1.0).log()
    deviance = 2.0 * (expected - counts + counts * (log_counts - expected.log()))
    return _mean_over_good(deviance, good_pixels)


def _mean_over_good(values: Tensor, good_pixels: Tensor) -> Tensor:
    patterns = values.numel() // good_pixels.numel()
    return (values * good_pixels).sum() / (good_pixels.sum() * patterns)


DEVIANCES = {'amplitude': amplitude_deviance, 'poisson': poisson_deviance}
"""The likelihoods by the name they have in the configuration."""
