"""Unitary far-field transform, Fourier shift and the quadratic phase of the Fresnel transform."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def propagate(wave: Tensor) -> Tensor:
    """Transform exit waves ``(..., H, W)`` complex to the far field, unitary; zero frequency at the corner (0, 0)."""
    transformed: Tensor = torch.fft.fft2(wave, norm='ortho')
    return transformed


def backpropagate(wave: Tensor) -> Tensor:
    """Apply the inverse (and adjoint) of :func:`propagate` to ``(..., H, W)`` complex."""
    transformed: Tensor = torch.fft.ifft2(wave, norm='ortho')
    return transformed


def shift_ramp(shifts: Tensor, shape: tuple[int, int], amplitude: Tensor | None = None) -> Tensor:
    """Return the Fourier multiplier that moves an image by ``shifts`` pixels towards larger indices.

    Args:
        shifts: ``(..., 2)`` real, (y, x) in pixels.
        shape: ``(H, W)``.
        amplitude: ``(...)`` real, a factor for each image; None for 1.

    Returns:
        ``(..., H, W)`` complex: ``a exp(-2 pi i (f_y s_y + f_x s_x))`` on the frequencies of ``torch.fft.fftfreq``.
    """
    frequency_y = torch.fft.fftfreq(shape[0], dtype=shifts.dtype, device=shifts.device)
    frequency_x = torch.fft.fftfreq(shape[1], dtype=shifts.dtype, device=shifts.device)
    ramp_y = torch.polar(torch.ones_like(frequency_y), -2 * math.pi * frequency_y * shifts[..., 0:1])
    ramp_x = torch.polar(torch.ones_like(frequency_x), -2 * math.pi * frequency_x * shifts[..., 1:2])
    if amplitude is not None:
        ramp_y = ramp_y * amplitude[..., None]
    return ramp_y[..., :, None] * ramp_x[..., None, :]


def quadratic_phase(
    fresnel_numbers: tuple[float, float], shape: tuple[int, int], dtype: torch.dtype = torch.float64
) -> Tensor:
    """Return the factor ``exp(i pi (F_y Y^2 + F_x X^2))`` that the Fresnel transform applies to the exit wave.

    Args:
        fresnel_numbers: pixel Fresnel numbers ``pixel^2 / (wavelength * distance)`` along (y, x); zeros give ones.
        shape: ``(H, W)``.
        dtype: real dtype of the computation.

    Returns:
        ``(H, W)`` complex; Y and X count pixels from index ``H // 2`` and ``W // 2`` (J. W. Goodman, Introduction to
        Fourier Optics, 3rd ed., eq. 4-17; the centre is that of Ptychodus' ``FresnelTransformPropagator``).
    """
    y = torch.arange(shape[0], dtype=dtype) - shape[0] // 2
    x = torch.arange(shape[1], dtype=dtype) - shape[1] // 2
    phase = math.pi * (fresnel_numbers[0] * y.square()[:, None] + fresnel_numbers[1] * x.square())
    return torch.polar(torch.ones_like(phase), phase)
