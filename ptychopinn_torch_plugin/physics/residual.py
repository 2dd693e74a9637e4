"""Residual waves of a batch of positions, and what they say about object, probe and positions.

The unknowns are the object canvas, the probe modes and the subpixel shifts of the positions. With the exit waves
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
from .patches import gather, merge
from .probe import power
from .propagation import backpropagate, propagate, shift_ramp

POISSON_FLOOR = 0.05
"""Photons added to the model where the Poisson weight divides by it: a dark pixel must not outweigh all others."""


class Batch(NamedTuple):
    """Positions that are looked at together."""

    amplitudes: Tensor
    """Measured amplitudes, ``(C, H, W)`` real, zero frequency at the corner."""
    patch_origins: Tensor
    """First canvas pixel (y, x) of each frame, ``(C, 2)`` int64."""
    subpixel_shifts: Tensor
    """Subpixel parts of the positions, ``(C, 2)`` real."""


class Experiment(NamedTuple):
    """What all positions share and nothing refines."""

    good_pixels: Tensor
    """1 where measured, ``(H, W)`` real, zero frequency at the corner."""
    phase: Tensor
    """Quadratic phase on the exit waves, ``(H, W)`` complex."""
    likelihood: str
    """'amplitude' or 'poisson'."""


class Shifted(NamedTuple):
    """The probe at the positions of a batch."""

    probes: Tensor
    """Shifted probes with the quadratic phase, ``(C, M, H, W)`` complex."""
    ramps: Tensor
    """Fourier multipliers that shifted them, ``(C, H, W)`` complex."""


class Residual(NamedTuple):
    """The residual of a batch and the waves it belongs to."""

    change: Tensor
    """``chi``, how each exit wave should change, ``(C, M, H, W)`` complex."""
    probes: Tensor
    """Probes at the positions, with the quadratic phase, ``(C, M, H, W)`` complex."""
    objects: Tensor
    """Object frames, ``(C, H, W)`` complex."""
    ramps: Tensor
    """Fourier multipliers that shifted the probes, ``(C, H, W)`` complex."""
    expected: Tensor
    """Model counts, ``(C, H, W)`` real, positive."""

    @property
    def amplitudes(self) -> Tensor:
        """Model amplitudes, ``(C, H, W)`` real."""
        return self.expected.sqrt()


def shift_probe(probe: Tensor, subpixel_shifts: Tensor, phase: Tensor) -> Shifted:
    """Put the probe, ``(M, H, W)`` complex, at the ``subpixel_shifts``, ``(C, 2)`` real, of a batch."""
    ramps = shift_ramp(subpixel_shifts, (probe.shape[-2], probe.shape[-1])).to(probe.dtype)
    return Shifted(torch.fft.ifft2(torch.fft.fft2(probe) * ramps[:, None]) * phase, ramps)


def residual_of(
    canvas: Tensor, probe: Tensor, batch: Batch, experiment: Experiment, shifted: Shifted | None = None
) -> Residual:
    """Simulate a batch and compare.

    Args:
        canvas: object, ``(h, w)`` complex.
        probe: modes, ``(M, H, W)`` complex, in square roots of photons.
        batch: positions and their measured amplitudes.
        experiment: mask, quadratic phase, likelihood.
        shifted: the probe at the positions, from :func:`shift_probe`, where it is known already.

    For the amplitude likelihood ``chi`` is half the negative gradient of ``sum (|psi| - sqrt(n))^2`` with respect to
    the exit wave; for the Poisson likelihood a quarter of that of ``sum I - n log(I)``, up to the floor, so that both
    agree for many counts.
    """
    probes, ramps = shifted or shift_probe(probe, batch.subpixel_shifts, experiment.phase)
    objects = gather(canvas[None], batch.patch_origins[None], (probe.shape[-2], probe.shape[-1]))[0]
    waves = propagate(probes * objects[:, None])
    expected = intensity(waves) + AMPLITUDE_EPS
    if experiment.likelihood == 'poisson':
        factor = 0.5 * (batch.amplitudes.square() - expected) / (expected + POISSON_FLOOR)
    else:
        factor = batch.amplitudes * expected.rsqrt() - 1.0
    change = backpropagate(waves * (factor * experiment.good_pixels)[:, None])
    return Residual(change, probes, objects, ramps, expected)


def object_change(residual: Residual, patch_origins: Tensor, shape: tuple[int, int]) -> Tensor:
    """What a batch says about the object: ``sum_jm conj(P_jm) chi_jm`` placed on the canvas, ``(h, w)`` complex."""
    return merge((residual.probes.conj() * residual.change).sum(dim=1)[None], patch_origins[None], shape)[0]


def photons_of(probes: Tensor, patch_origins: Tensor, shape: tuple[int, int]) -> Tensor:
    """Photons with which a batch's probes, ``(C, M, H, W)`` complex, light the canvas, ``(h, w)`` real."""
    return merge(power(probes)[None], patch_origins[None], shape)[0]


def returned_spectra(residual: Residual, phase: Tensor) -> Tensor:
    """What each pattern says about the unshifted probe: spectra ``(C, M, H, W)`` complex of ``conj(O_j) chi_jm``."""
    back = residual.change * residual.objects.conj()[:, None] * phase.conj()
    spectra: Tensor = torch.fft.fft2(back) * residual.ramps.conj()[:, None]
    return spectra


def transmission(residual: Residual) -> Tensor:
    """``|O_j|^2`` of the object frames, ``(C, H, W)`` real."""
    return residual.objects.real.square() + residual.objects.imag.square()


def intensity_ratio(measured: Tensor, residual: Residual, good_pixels: Tensor) -> Tensor:
    """Photons of each frame over what the model expects, ``(C,)``: the scale that the Poisson likelihood likes best.

    Args:
        measured: amplitudes, ``(C, H, W)`` real.
        residual: the batch.
        good_pixels: 1 where measured, ``(H, W)`` real.
    """
    photons = (measured.square() * good_pixels).sum(dim=(-2, -1))
    return photons / (residual.expected * good_pixels).sum(dim=(-2, -1)).clamp_min(1e-12)


def position_change(residual: Residual, returned: Tensor, probe: Tensor) -> Tensor:
    """Gauss-Newton step of every position of a batch, ``(C, 2)`` real, (y, x) in pixels.

    The exit wave's derivative by a shift is the object times the probe's derivative, ``-2 pi i f`` in its spectrum, so
    the gradient is an inner product of spectra that are there already. The Gauss-Newton matrix takes the slopes of the
    probe at half a pixel for all positions: it only sets the length of the step.

    Args:
        residual: the batch.
        returned: its :func:`returned_spectra`.
        probe: modes, ``(M, H, W)`` complex.
    """
    toward_y, toward_x = position_gradient(returned, probe).unbind(dim=-1)
    spectrum, frequency_y, frequency_x = _spectrum(probe)
    halfway = spectrum * shift_ramp(frequency_y.new_full((2,), 0.5), (probe.shape[-2], probe.shape[-1])).to(probe.dtype)
    slope_y = torch.fft.ifft2(halfway * (-1j * frequency_y[:, None]))
    slope_x = torch.fft.ifft2(halfway * (-1j * frequency_x))
    squares = [_overlap(slope_y, slope_y), _overlap(slope_x, slope_x), _overlap(slope_y, slope_x)]
    yy, xx, xy = (transmission(residual).flatten(1) @ torch.stack(squares, dim=-1)).unbind(dim=-1)
    # A probe whose two slopes are nearly one leaves the determinant small: a thousandth of its bound keeps it away.
    determinant = (yy * xx - xy.square() + 1e-3 * yy * xx).clamp_min(1e-30)
    return torch.stack([xx * toward_y - xy * toward_x, yy * toward_x - xy * toward_y], dim=-1) / determinant[:, None]


def position_gradient(returned: Tensor, probe: Tensor) -> Tensor:
    """Half the negative gradient of the misfit with respect to the positions, ``(C, 2)`` real, (y, x).

    Arguments as in :func:`position_change`.
    """
    spectrum, frequency_y, frequency_x = _spectrum(probe)
    cross = (spectrum.real * returned.imag - spectrum.imag * returned.real).sum(dim=1) / -spectrum[0].numel()
    return torch.stack([cross.sum(dim=-1) @ frequency_y, cross.sum(dim=-2) @ frequency_x], dim=-1)


def _spectrum(probe: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Spectrum of the probe, and angular frequencies along y and x in radians per pixel."""
    height, width = probe.shape[-2:]
    frequency_y = 2 * math.pi * torch.fft.fftfreq(height, device=probe.device, dtype=probe.real.dtype)
    frequency_x = 2 * math.pi * torch.fft.fftfreq(width, device=probe.device, dtype=probe.real.dtype)
    return torch.fft.fft2(probe), frequency_y, frequency_x


def _overlap(a: Tensor, b: Tensor) -> Tensor:
    """Real part of ``a conj(b)`` summed over modes, ``(M, H, W)`` to ``(H W,)``."""
    return (a.real * b.real + a.imag * b.imag).sum(dim=0).flatten()
