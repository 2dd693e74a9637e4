"""Residual waves of a batch of positions, and what they say about object, probe and positions.

The unknowns are the object canvas, the probe modes and the subpixel remainders of the positions. With the exit waves
``E_jm = P_jm O_j``, the far-field waves take the measured moduli and go back: ``chi_jm`` is how each exit wave should
change. Everything else is an inner product with it. The hand-written derivatives are tested against autograd and
against finite differences of the host's simulator.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .forward import AMPLITUDE_EPS, intensity
from .frames import gather, merge
from .probe import power
from .propagation import backpropagate, propagate, shift_ramp

POISSON_FLOOR = 0.5
"""Photons added to the model where the Poisson weight divides by it: a dark pixel must not outweigh all others."""


class Batch(NamedTuple):
    """Positions that are looked at together."""

    amplitudes: Tensor
    """Measured amplitudes, ``(C, H, W)`` real, zero frequency at the corner."""
    corners: Tensor
    """First canvas pixel (y, x) of each frame, ``(C, 2)`` int64."""
    remainders: Tensor
    """Subpixel parts of the positions, ``(C, 2)`` real."""


class Experiment(NamedTuple):
    """What all positions share and nothing refines."""

    good_pixels: Tensor
    """1 where measured, ``(H, W)`` real, zero frequency at the corner."""
    phase: Tensor
    """Quadratic phase on the exit waves, ``(H, W)`` complex."""
    likelihood: str
    """'amplitude' or 'poisson'."""


class Residual(NamedTuple):
    """The residual of a batch and the waves it belongs to."""

    change: Tensor
    """``chi``, how each exit wave should change, ``(C, M, H, W)`` complex."""
    probes: Tensor
    """Probes at the positions, with the quadratic phase, ``(C, M, H, W)`` complex."""
    objects: Tensor
    """Object frames, ``(C, H, W)`` complex."""
    spectra: Tensor
    """Spectra of the shifted probes, ``(C, M, H, W)`` complex."""
    ramps: Tensor
    """Fourier multipliers that shifted them, ``(C, H, W)`` complex."""
    amplitudes: Tensor
    """Model amplitudes, ``(C, H, W)`` real."""


def residual_of(canvas: Tensor, probe: Tensor, batch: Batch, experiment: Experiment) -> Residual:
    """Simulate a batch and compare.

    Args:
        canvas: object, ``(h, w)`` complex.
        probe: modes, ``(M, H, W)`` complex, in square roots of photons.
        batch: positions and their measured amplitudes.
        experiment: mask, quadratic phase, likelihood.

    For the amplitude likelihood ``chi`` is half the negative gradient of ``sum (|psi| - sqrt(n))^2`` with respect to
    the exit wave; for the Poisson likelihood a quarter of that of ``sum I - n log(I)``, up to the floor, so that both
    agree for many counts.
    """
    shape = (probe.shape[-2], probe.shape[-1])
    ramps = shift_ramp(batch.remainders, shape).to(probe.dtype)
    spectra = torch.fft.fft2(probe) * ramps[:, None]
    probes = torch.fft.ifft2(spectra) * experiment.phase
    objects = gather(canvas[None], batch.corners[None], shape)[0]
    waves = propagate(probes * objects[:, None])
    expected = intensity(waves) + AMPLITUDE_EPS
    amplitudes = expected.sqrt()
    if experiment.likelihood == 'poisson':
        factor = 0.5 * (batch.amplitudes.square() - expected) / (expected + POISSON_FLOOR)
    else:
        factor = batch.amplitudes / amplitudes - 1.0
    weighted = torch.view_as_real(waves) * (factor * experiment.good_pixels)[:, None, ..., None]
    change = backpropagate(torch.view_as_complex(weighted))
    return Residual(change, probes, objects, spectra, ramps, amplitudes)


def object_change(residual: Residual, corners: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """What a batch says about the object, and with how many photons.

    Returns:
        Direction ``(h, w)`` complex, ``sum_jm conj(P_jm) chi_jm`` placed on the canvas, and illumination ``(h, w)``.
    """
    direction = merge((residual.probes.conj() * residual.change).sum(dim=1)[None], corners[None], shape)[0]
    return direction, merge(power(residual.probes)[None], corners[None], shape)[0]


def probe_change(residual: Residual, phase: Tensor) -> tuple[Tensor, Tensor]:
    """What a batch says about the probe, and how transparent its frames are.

    Returns:
        Spectrum of the direction, ``(M, H, W)`` complex (each position's part is shifted back), and
        ``sum_j |O_j|^2``, ``(H, W)`` real.
    """
    back = residual.change * residual.objects.conj()[:, None] * phase.conj()
    spectrum = (torch.fft.fft2(back) * residual.ramps.conj()[:, None]).sum(dim=0)
    return spectrum, (residual.objects.real.square() + residual.objects.imag.square()).sum(dim=0)


def position_change(residual: Residual, phase: Tensor) -> Tensor:
    """Gauss-Newton step of every position of a batch, ``(C, 2)`` real, (y, x) in pixels.

    The exit wave's derivative by a shift is the object times the probe's derivative, ``-2 pi i f`` in its spectrum.
    """
    height, width = residual.spectra.shape[-2:]
    frequency_y = torch.fft.fftfreq(height, device=phase.device, dtype=phase.real.dtype)[:, None]
    frequency_x = torch.fft.fftfreq(width, device=phase.device, dtype=phase.real.dtype)
    scene = residual.objects[:, None] * phase
    slope_y = torch.fft.ifft2(residual.spectra * (-2j * math.pi * frequency_y)) * scene
    slope_x = torch.fft.ifft2(residual.spectra * (-2j * math.pi * frequency_x)) * scene
    yy, xx, xy = _inner(slope_y, slope_y), _inner(slope_x, slope_x), _inner(slope_y, slope_x)
    toward_y, toward_x = _inner(slope_y, residual.change), _inner(slope_x, residual.change)
    # A probe whose two slopes are nearly one leaves the determinant small: a thousandth of its bound keeps it away.
    determinant = (yy * xx - xy.square() + 1e-3 * yy * xx).clamp_min(1e-30)
    return torch.stack([xx * toward_y - xy * toward_x, yy * toward_x - xy * toward_y], dim=-1) / determinant[:, None]


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Real inner product over modes and pixels, ``(C, M, H, W)`` to ``(C,)``."""
    return (a.real * b.real + a.imag * b.imag).sum(dim=(-3, -2, -1))
