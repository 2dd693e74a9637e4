"""Probes at scan positions, their power and their illumination of a canvas."""

from __future__ import annotations

import torch
from torch import Tensor

from .patches import merge
from .propagation import shift_ramp


def probes_at(probe: Tensor, subpixel_shifts: Tensor, phase: Tensor | None = None) -> Tensor:
    """The probe at every position's subpixel remainder, ready to multiply an object frame.

    Args:
        probe: ``(M, H, W)`` complex, incoherent modes.
        subpixel_shifts: ``(..., 2)`` real, (y, x) in pixels, each in [0, 1).
        phase: ``(H, W)`` complex of modulus 1, multiplied onto every shifted probe (see
            :func:`~.propagation.quadratic_phase`), or None.

    Returns:
        ``(..., M, H, W)`` complex.
    """
    ramps = shift_ramp(subpixel_shifts, (probe.shape[-2], probe.shape[-1])).to(probe.dtype)
    shifted: Tensor = torch.fft.ifft2(torch.fft.fft2(probe) * ramps[..., None, :, :])
    return shifted if phase is None else shifted * phase.to(shifted.dtype)


def power(wave: Tensor) -> Tensor:
    """``|wave|^2`` summed over the mode axis: ``(..., M, H, W)`` complex to ``(..., H, W)`` real."""
    return (wave.real.square() + wave.imag.square()).sum(dim=-3)


def illumination(probes: Tensor, patch_origins: Tensor, canvas_shape: tuple[int, int]) -> Tensor:
    """Photons per canvas pixel of all positions together for a transparent object.

    Args:
        probes: ``(B, C, M, H, W)`` complex, as returned by :func:`probes_at`.
        patch_origins: ``(B, C, 2)`` int64.
        canvas_shape: ``(h, w)``.

    Returns:
        ``(B, h, w)`` real.
    """
    return merge(power(probes), patch_origins, canvas_shape)
