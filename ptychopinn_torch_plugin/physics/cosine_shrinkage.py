"""Noise reduction by hard thresholds on cosine transforms of overlapping blocks.

The object is divided into overlapping blocks of 8 x 8 pixels. With the two-dimensional cosine transform ``C_k`` of a
block, its constant part ``C_0`` and the photons ``W`` on a pixel, each block is estimated as follows::

    u = C_0 / |C_0|
    q = sum_k C_k^2 |C_k|^2                              without the constant part
    v = exp(i/2 arg(q + 2 u^2 mean(q / u^2)))            the mean over all blocks of the previous call
    A_k, B_k = Re, Im of C_k / v
    A_k <- A_k where |A_k| > T, else 0,   B_k likewise,   T = threshold / sqrt(2 W)

The complex numbers ``C_k`` scatter around ``v``, the principal axis of the block. Where amplitude and phase of an
object have the same edges, one axis holds both, and noise on the other axis is removed. Where they have different
structure, the phase usually prevails, and the axes separate phase and amplitude. ``1 / (2 W)`` is the variance of
photon noise of a real and of an imaginary part. Overlapping estimates are averaged with the weights
``1 / (1 + share)`` by the number of coefficients that were kept (K. Dabov et al., IEEE Trans. Image Process. 16, 2080
(2007)). Sliding transforms: G. Yu & G. Sapiro, Image Process. On Line 1, 292 (2011); blocks at other places in every
call: R. R. Coifman & D. L. Donoho, Translation-invariant de-noising (1995). The principal axis has no source; its
powers of ``C_k`` were chosen by measured quality (:doc:`/benchmarks`).
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import fold, pad, unfold

BLOCK_PX = 8
STRIDE_PX = 4
"""Distance of neighbouring blocks."""
BAND_BLOCKS = 4096
"""Blocks in memory at a time, roughly."""
COMMON_AXIS = 2.0
"""Weight of the axis of all blocks against that of each."""


class CosineShrinkage:
    """Estimates objects from noisy ones.

    Args:
        threshold: in standard deviations of photon noise, positive.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._calls = 0
        self._common: Tensor | None = None

    def __call__(self, object_array: Tensor, photons: Tensor) -> Tensor:
        """Return the estimate of ``object_array`` ``(h, w)`` complex, lit by ``photons`` ``(h, w)`` real, positive."""
        shift = _shift(self._calls)
        self._calls += 1
        parts = torch.view_as_real(object_array).permute(2, 0, 1)
        stacked = torch.cat((parts, photons[None])).roll(shift, (1, 2))
        height, width = object_array.shape
        rows, columns = (math.ceil(side / STRIDE_PX) for side in (height, width))
        bottom, right = (
            (count - 1) * STRIDE_PX + BLOCK_PX - side
            for count, side in zip((rows, columns), (height, width), strict=True)
        )
        padded = pad(stacked[None], (0, right, 0, bottom), mode='circular')[0]
        total = torch.zeros_like(padded)
        axes = []
        band = max(1, BAND_BLOCKS // columns)
        for first in range(0, rows, band):
            count = min(band, rows - first)
            lines = slice(first * STRIDE_PX, (first + count - 1) * STRIDE_PX + BLOCK_PX)
            estimates, axis = self._estimate(padded[:, lines])
            total[:, lines] += estimates
            axes.append(axis)
        self._common = torch.stack(axes).sum(dim=0) / (rows * columns)
        total[:, :bottom] += total[:, height:]
        total[:, :, :right] += total[:, :, width:]
        total = total[:, :height, :width].roll((-shift[0], -shift[1]), (1, 2))
        return torch.complex(total[0] / total[2], total[1] / total[2])

    def _estimate(self, band: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weighted estimates of a band and their weights, ``(3, h', w)``, and its sum of ``q / u^2``."""
        pixels = BLOCK_PX * BLOCK_PX
        blocks = unfold(band[None], BLOCK_PX, stride=STRIDE_PX)[0].reshape(3, pixels, -1)
        transform = _transform(band.device, band.dtype)
        real, imaginary = transform @ blocks[:2]
        threshold = self._threshold * (2 * blocks[2].mean(dim=0)).rsqrt()
        constant = torch.complex(real[0], imaginary[0])
        squared_phase = constant.square() / (constant.abs().square() + 1e-12)
        squares_r, squares_i = real[1:].square(), imaginary[1:].square()
        axis = torch.complex(
            (squares_r.square() - squares_i.square()).sum(dim=0),
            2 * (real[1:] * imaginary[1:] * (squares_r + squares_i)).sum(dim=0),
        )
        relative = (axis * squared_phase.conj()).sum()
        if self._common is not None:
            axis = axis + COMMON_AXIS * self._common * squared_phase
        turn = torch.polar(torch.ones_like(threshold), 0.5 * axis.angle())
        along = real * turn.real + imaginary * turn.imag
        across = imaginary * turn.real - real * turn.imag
        keep_along, keep_across = along.abs() > threshold, across.abs() > threshold
        keep_along[0] = keep_across[0] = True
        weight = 1 / (1 + 0.5 * (keep_along.sum(dim=0) + keep_across.sum(dim=0)))
        along, across = along * keep_along, across * keep_across
        kept = torch.stack((along * turn.real - across * turn.imag, across * turn.real + along * turn.imag))
        estimates = (transform.T @ kept) * weight
        columns = torch.cat((estimates, weight.expand(1, pixels, -1))).flatten(0, 1)
        return fold(columns[None], (band.shape[1], band.shape[2]), BLOCK_PX, stride=STRIDE_PX)[0], relative


def _shift(call: int) -> tuple[int, int]:
    """Return the shift of the blocks in a call: every one of the possible ones in turn, neighbours far apart."""
    number = 7 * call % (STRIDE_PX * STRIDE_PX)
    return number // STRIDE_PX, number % STRIDE_PX


@cache
def _transform(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the orthonormal cosine transform of the pixels of a block, ``(64, 64)``."""
    frequency = torch.arange(BLOCK_PX, dtype=torch.float64)
    rows = (math.pi / BLOCK_PX * (frequency + 0.5) * frequency[:, None]).cos() * math.sqrt(2 / BLOCK_PX)
    rows[0] /= math.sqrt(2)
    return torch.kron(rows, rows).to(dtype).to(device)
