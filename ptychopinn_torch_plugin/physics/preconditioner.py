"""A preconditioner for slow phases: what a plain gradient learns last on large scans.

The low-frequency part of the phase hardly changes any single pattern (each sees a nearly constant phase), so its
gradient is small and takes many steps. Amplifying it in a direction costs two transforms of the canvas.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOW_FREQUENCY = 0.03
"""Cycles per pixel below which the phase is pushed harder."""


def low_frequency_filter(shape: tuple[int, int], device: torch.device, limit: float) -> Tensor:
    """``clamp((k0 / k)^2 - 1, 0, limit)`` on the frequencies of a canvas, ``(h, w)`` float32, zero at zero frequency.

    The constant phase is left alone: no pattern depends on it.
    """
    frequency_y = torch.fft.fftfreq(shape[0], device=device)
    frequency_x = torch.fft.fftfreq(shape[1], device=device)
    squared = frequency_y.square()[:, None] + frequency_x.square()
    gain: Tensor = (LOW_FREQUENCY**2 / squared.clamp_min(1e-12) - 1.0).clamp(0.0, limit)
    gain[0, 0] = 0.0
    return gain


def precondition_low_frequencies(direction: Tensor, canvas: Tensor, gain: Tensor) -> Tensor:
    """Add to ``direction`` its own slow phase part, amplified by ``gain``; all ``(B, h, w)``, the gain ``(h, w)``."""
    modulus = canvas.real.square() + canvas.imag.square()
    phase = (canvas.conj() * direction).imag / modulus.clamp_min(1e-2)
    slow = torch.fft.ifft2(torch.fft.fft2(phase) * gain).real
    return direction + canvas * torch.complex(torch.zeros_like(slow), slow)
