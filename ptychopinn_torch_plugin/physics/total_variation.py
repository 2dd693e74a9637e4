"""The proximal operator of total variation.

It is computed by projected gradient steps on the dual problem (A. Chambolle, J. Math. Imaging Vis. 20, 89 (2004))::

    p <- (p + t grad(Z + r div p)) / max(1, |.|),   t = 1 / (8 r)
    O  = Z + r div p

with the ratio ``r = lambda / W`` of strength and weight at each pixel. Differences are cyclic.
"""

from __future__ import annotations

from torch import Tensor

STABLE_STEP = 1.0 / 8.0
"""Largest stable ``t r`` (Chambolle 2004, theorem 3.1)."""


def dual_step_sizes(ratio: Tensor) -> Tensor:
    """Return ``t``, ``(h, w)`` real.

    A difference joins two pixels: the larger of their ratios gives the step that is stable for both.
    """
    largest = ratio.maximum(ratio.roll(-1, 0).maximum(ratio.roll(-1, 1)))
    return STABLE_STEP / largest


def proximal_point(object_array: Tensor, ratio: Tensor, dual_y: Tensor, dual_x: Tensor, steps: int) -> Tensor:
    """Compute the proximal point of ``object_array``.

    Args:
        object_array: ``Z``, ``(h, w)`` complex.
        ratio: ``r``, ``(h, w)`` real, positive.
        dual_y: ``p`` along y, ``(h, w)`` complex; the start, and replaced by the result.
        dual_x: the same along x.
        steps: number of dual steps.

    Returns:
        ``O``, ``(h, w)`` complex.
    """
    size = dual_step_sizes(ratio)
    for _ in range(steps):
        present = object_array + ratio * _divergence(dual_y, dual_x)
        dual_y += size * (present.roll(-1, 0) - present)
        dual_x += size * (present.roll(-1, 1) - present)
        length = (_squared_modulus(dual_y) + _squared_modulus(dual_x)).sqrt().clamp_min(1.0)
        dual_y /= length
        dual_x /= length
    return object_array + ratio * _divergence(dual_y, dual_x)


def _divergence(dual_y: Tensor, dual_x: Tensor) -> Tensor:
    return dual_y - dual_y.roll(1, 0) + dual_x - dual_x.roll(1, 1)


def _squared_modulus(wave: Tensor) -> Tensor:
    return wave.real.square() + wave.imag.square()
