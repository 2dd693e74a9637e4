"""Moments of the square root of Poisson counts: mean, variance and mean absolute deviation, for all count rates."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import gammaln
from torch import Tensor

LARGEST_ROOT = 20.0
"""Square root of the counts up to which sums over the Poisson distribution are tabulated; above, it is a Gaussian."""
STEP = 0.05
LARGEST_OFFSET = 3.0
"""Mean of a Gaussian of variance 1/4 from which on its mean modulus is the mean itself, to 1e-9."""
OFFSET_STEP = 0.005


class NoiseTables(NamedTuple):
    """Moments of ``sqrt(n)`` at multiples of a step, float32 on the CPU."""

    moments: Tensor
    """Mean, variance and deviation at multiples of ``STEP``, ``(n, 3)``."""
    folded_normal: Tensor
    """Mean modulus of a Gaussian of variance 1/4 around multiples of ``OFFSET_STEP``, ``(n,)``."""
    ratio: float
    """The deviation is measured from ``ratio * root``."""


class PhotonNoise:
    """Moments of ``sqrt(n)``, with ``n`` Poisson distributed around ``root**2``.

    For many counts: variance 1/4, mean ``root - 1/(8 root)`` (F. J. Anscombe, Biometrika 35, 246 (1948)). For few
    counts: sums over the distribution, tabulated and interpolated.

    Args:
        ratio: the deviation is measured from ``ratio * root`` instead of ``root``.
        device: device of the tables.
    """

    def __init__(self, ratio: float, device: torch.device) -> None:
        self._ratio = ratio
        roots = np.arange(0.0, LARGEST_ROOT + 2 * STEP, STEP)
        self._mean, self._variance, self._deviation = (
            torch.from_numpy(table.astype(np.float32)).to(device) for table in _tables(roots, ratio)
        )

    def mean(self, root: Tensor) -> Tensor:
        """Return ``E sqrt(n)``; same shape as ``root``, real, square roots of photons."""
        return torch.where(root < LARGEST_ROOT, _look_up(self._mean, root), root - 0.125 / root.clamp_min(1.0))

    def variance(self, root: Tensor) -> Tensor:
        """Return ``Var sqrt(n)``; 1/4 for many counts."""
        return torch.where(root < LARGEST_ROOT, _look_up(self._variance, root), 0.25)

    def deviation(self, root: Tensor) -> Tensor:
        """Return ``E |sqrt(n) - ratio root|``; for many counts that of a Gaussian of variance 1/4 (folded normal)."""
        offset = (1.0 - self._ratio) * root - 0.125 / root.clamp_min(1.0)
        return torch.where(root < LARGEST_ROOT, _look_up(self._deviation, root), _folded_normal(offset))

    @functools.cached_property
    def tables(self) -> NoiseTables:
        """The same moments, as compiled loops look them up."""
        moments = torch.stack([self._mean, self._variance, self._deviation], dim=1)
        offsets = torch.arange(0.0, LARGEST_OFFSET + 2 * OFFSET_STEP, OFFSET_STEP, dtype=torch.float64)
        return NoiseTables(moments.cpu(), _folded_normal(offsets).float(), self._ratio)


def _folded_normal(offset: Tensor) -> Tensor:
    """Return the mean modulus of a Gaussian of variance 1/4 around ``offset``."""
    mean: Tensor = (2 * np.pi) ** -0.5 * torch.exp(-2 * offset.square()) + offset * torch.erf(2**0.5 * offset)
    return mean


def _tables(roots: npt.NDArray[np.float64], ratio: float) -> tuple[npt.NDArray[np.float64], ...]:
    counts = np.arange(0, int(LARGEST_ROOT**2 + 12 * LARGEST_ROOT))
    rates = np.maximum(roots**2, 1e-300)[:, None]
    weights = np.exp(counts * np.log(rates) - rates - gammaln(counts + 1.0))
    measured = np.sqrt(counts)
    mean = weights @ measured
    variance = weights @ measured**2 - mean**2
    deviation = (weights * np.abs(measured - ratio * roots[:, None])).sum(axis=1)
    return mean, variance, deviation


def _look_up(table: Tensor, root: Tensor) -> Tensor:
    position = root.clamp(0.0, LARGEST_ROOT) / STEP
    below = position.floor()
    index = below.long()
    return torch.lerp(table[index], table[index + 1], position - below)
