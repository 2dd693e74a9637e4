"""Agreement of predicted patterns with patterns that took no part in the reconstruction.

A misfit to the patterns that were fitted becomes small for a wrong model too, where unknowns are many or photons are
few. Patterns that were left out are predicted only as far as the model is right. With counts ``n``, prediction ``I``
and the mean pattern ``m`` of the scan, all three of the same sum, each pixel contributes in units of photon noise::

    x = (I - m) / sqrt(m + f),   y = (n - m) / sqrt(m + f)

The mean pattern is what is known without an object, so ``x = 0`` is a prediction that says nothing. Photon noise adds
``n / (m + f)`` to the expectation of ``y^2`` and nothing to that of ``x y``, hence the explained share of the signal::

    share = (sum x y)^2 / [sum x^2 (sum y^2 - sum n / (m + f))]
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FLOOR_PHOTONS = 0.05
"""``f``: limits the weight of a pixel that is hardly ever hit; the same floor as in the Poisson likelihood."""

GROUPS = 10
"""Groups of held-out patterns that are left out in turn for standard errors."""

Sums = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Agreement:
    """Sums over the pixels of every held-out pattern, each ``(k,)`` float64, dimensionless."""

    product: Sums
    """``sum x y``."""
    predicted: Sums
    """``sum x^2``."""
    measured: Sums
    """``sum y^2``."""
    noise: Sums
    """``sum n / (m + f)``, the expectation of the part of ``measured`` that is photon noise."""

    @property
    def correlation(self) -> float:
        """Correlation of prediction and counts, -1 to 1; photon noise makes it small."""
        return _ratio(self.product.sum(), math.sqrt(self.predicted.sum() * self.measured.sum()))

    @property
    def share(self) -> float:
        """Explained share of the signal, corrected for photon noise, from 0; about 1 for an exact prediction.

        A negative correlation explains nothing: 0. Where the patterns differ by photon noise alone, there is no signal
        to explain: NaN.
        """
        signal = self.measured.sum() - self.noise.sum()
        if signal <= 0:
            return math.nan
        return _ratio(max(self.product.sum(), 0.0) ** 2, self.predicted.sum() * signal)

    def without(self, left_out: npt.NDArray[np.bool_]) -> Agreement:
        """Return the sums of the patterns that are not ``left_out`` ``(k,)``."""
        kept = ~left_out
        return Agreement(self.product[kept], self.predicted[kept], self.measured[kept], self.noise[kept])


def join(parts: list[Agreement]) -> Agreement:
    """Return the sums of all ``parts``, in their order."""
    return Agreement(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ('product', 'predicted', 'measured', 'noise')
        )
    )


def agreement(
    counts: npt.NDArray[np.floating], expected: npt.NDArray[np.floating], mean: npt.NDArray[np.floating]
) -> Agreement:
    """Compare held-out patterns with their prediction.

    Args:
        counts: measured counts of the good pixels, ``(k, pixels)``.
        expected: predicted counts, same shape; each pattern is scaled to the sum of its counts.
        mean: mean pattern of the scan, ``(pixels,)``; scaled likewise.
    """
    total = counts.sum(axis=1, dtype=np.float64)[:, None]
    predicted = expected * (total / np.maximum(expected.sum(axis=1, dtype=np.float64)[:, None], 1e-30))
    usual = mean * (total / max(float(mean.sum(dtype=np.float64)), 1e-30))
    weight = 1.0 / (usual + FLOOR_PHOTONS)
    x, y = predicted - usual, counts - usual
    return Agreement(
        product=(x * y * weight).sum(axis=1, dtype=np.float64),
        predicted=(x * x * weight).sum(axis=1, dtype=np.float64),
        measured=(y * y * weight).sum(axis=1, dtype=np.float64),
        noise=(counts * weight).sum(axis=1, dtype=np.float64),
    )


def lead_of(best: Agreement, other: Agreement) -> float:
    """Return by how many standard errors ``best`` correlates better than ``other``; both of the same patterns."""

    def difference(first: Agreement, second: Agreement) -> float:
        return first.correlation - second.correlation

    value, error = jackknife(difference, best, other)
    return value / error if error > 0 else math.inf


def jackknife(function: Callable[..., float], *items: Agreement) -> tuple[float, float]:
    """Return ``function`` of agreements on the same patterns, and its standard error over groups of the patterns."""
    count = items[0].product.size
    groups = min(GROUPS, count)
    value = function(*items)
    if groups < 2:
        return value, math.inf
    numbers = np.arange(count) % groups
    values = np.array([function(*(item.without(numbers == group) for item in items)) for group in range(groups)])
    return value, math.sqrt((groups - 1) / groups * float(np.square(values - values.mean()).sum()))


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator > 0 else 0.0
