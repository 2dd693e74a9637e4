"""Derivatives of the deviance with respect to probe, positions and frame intensities.

Notation and the factor of every derivative are those of :mod:`.forward`. The probe at position ``j`` is
``P_jm = Q F^-1(F(P_m) g_j)`` with the quadratic phase ``Q`` and ``g_j = sqrt(s_j) exp(-2 pi i f r_j)``, the Fourier
ramp of the subpixel shift ``r_j`` times the root of the frame intensity ``s_j``. With the exit-wave updates
``chi_jm``::

    S_jm  = g_j* F(Q* O_j* chi_jm)                          probe spectra
    -1/4 dD/dP_m* = F^-1 sum_j S_jm                         probe update
    -1/8 dD/dr_j  = Re sum_m <-2 pi i f F(P_m), S_jm> / N   position gradient (N pixels)

The position step is Gauss-Newton: ``H_j dr = -1/8 dD/dr_j``, where ``H_j`` is the 2 x 2 matrix of the inner products
of ``O_j dP_jm/dr``. Its derivation assumes that each pattern is explained up to its own position; the probe's slopes
are taken at half a pixel for all positions, because the matrix sets only the length of the step.
The derivatives are tested against autograd and against finite differences of Ptychodus' simulator.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .propagation import shift_ramp

DETERMINANT_FLOOR = 1e-3
"""Share of its upper bound that is added to the determinant of ``H``: a probe with two nearly equal slopes is safe."""


def probe_spectra(chi: Tensor, object_patches: Tensor, ramps: Tensor, phase: Tensor) -> Tensor:
    """Compute ``S_jm``, the spectrum of every position's probe update.

    Args:
        chi: exit-wave updates, ``(C, M, H, W)`` complex.
        object_patches: ``(C, H, W)`` complex.
        ramps: ``g_j``, ``(C, H, W)`` complex.
        phase: ``Q``, ``(H, W)`` complex.

    Returns:
        ``(C, M, H, W)`` complex.
    """
    back = chi * (object_patches.conj() * phase.conj())[:, None]
    spectra: Tensor = torch.fft.fft2(back) * ramps.conj()[:, None]
    return spectra


def intensity_ratio(amplitudes: Tensor, expected: Tensor, good_pixels: Tensor) -> Tensor:
    """Compute the factor of every frame intensity that maximises the Poisson likelihood (without its floor).

    Args:
        amplitudes: measured, ``(C, H, W)`` real.
        expected: counts, ``(C, H, W)`` real.
        good_pixels: 1 where measured, ``(H, W)`` real.

    Returns:
        Measured over expected photons, ``(C,)``.
    """
    photons = (amplitudes.square() * good_pixels).sum(dim=(-2, -1))
    return photons / (expected * good_pixels).sum(dim=(-2, -1)).clamp_min(1e-12)


def position_gradient(spectra: Tensor, probe: Tensor) -> Tensor:
    """Compute ``-1/8 dD/dr_j`` of every position.

    Args:
        spectra: ``S_jm`` of :func:`probe_spectra`, ``(C, M, H, W)`` complex.
        probe: modes, ``(M, H, W)`` complex.

    Returns:
        ``(C, 2)`` real, (y, x).
    """
    spectrum, frequency_y, frequency_x = _spectrum(probe)
    cross = (spectrum.real * spectra.imag - spectrum.imag * spectra.real).sum(dim=1) / -spectrum[0].numel()
    return torch.stack([cross.sum(dim=-1) @ frequency_y, cross.sum(dim=-2) @ frequency_x], dim=-1)


def position_step(spectra: Tensor, transmittance: Tensor, intensities: Tensor, probe: Tensor) -> Tensor:
    """Compute the Gauss-Newton step of every position.

    Args:
        spectra: ``S_jm`` of :func:`probe_spectra`, ``(C, M, H, W)`` complex.
        transmittance: ``|O_j|^2``, ``(C, H, W)`` real.
        intensities: ``s_j``, ``(C,)`` real.
        probe: modes, ``(M, H, W)`` complex.

    Returns:
        ``(C, 2)`` real, (y, x) in pixels.
    """
    matrices = intensities[:, None] * (transmittance.flatten(1) @ slope_products(probe).flatten(1).T)
    return gauss_newton_step(position_gradient(spectra, probe), matrices)


def slope_products(probe: Tensor) -> Tensor:
    """Compute the products of the probe's slopes (yy, xx, yx) at half a pixel, summed over modes.

    Args:
        probe: modes, ``(M, H, W)`` complex.

    Returns:
        ``(3, H, W)`` real; ``H_j`` is their inner product with ``s_j |O_j|^2``.
    """
    spectrum, frequency_y, frequency_x = _spectrum(probe)
    half = shift_ramp(frequency_y.new_full((2,), 0.5), (probe.shape[-2], probe.shape[-1])).to(probe.dtype)
    slope_y = torch.fft.ifft2(spectrum * half * (-1j * frequency_y[:, None]))
    slope_x = torch.fft.ifft2(spectrum * half * (-1j * frequency_x))
    pairs = ((slope_y, slope_y), (slope_x, slope_x), (slope_y, slope_x))
    return torch.stack([_real_product(a, b) for a, b in pairs])


def gauss_newton_step(gradients: Tensor, matrices: Tensor) -> Tensor:
    """Solve ``H_j dr = -1/8 dD/dr_j`` for every position.

    Args:
        gradients: ``-1/8 dD/dr_j``, ``(C, 2)`` real.
        matrices: the elements yy, xx, yx of ``H_j``, ``(C, 3)`` real.

    Returns:
        ``(C, 2)`` real, (y, x) in pixels; zero where ``H_j`` is zero.
    """
    gradient_y, gradient_x = gradients.unbind(dim=-1)
    yy, xx, yx = matrices.unbind(dim=-1)
    determinant = (yy * xx - yx.square() + DETERMINANT_FLOOR * yy * xx).clamp_min(1e-30)
    step = torch.stack([xx * gradient_y - yx * gradient_x, yy * gradient_x - yx * gradient_y], dim=-1)
    return step / determinant[:, None]


def _spectrum(probe: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the spectrum of the probe, and the angular frequencies along y and x in radians per pixel."""
    height, width = probe.shape[-2:]
    frequency_y = 2 * math.pi * torch.fft.fftfreq(height, device=probe.device, dtype=probe.real.dtype)
    frequency_x = 2 * math.pi * torch.fft.fftfreq(width, device=probe.device, dtype=probe.real.dtype)
    return torch.fft.fft2(probe), frequency_y, frequency_x


def _real_product(a: Tensor, b: Tensor) -> Tensor:
    """Return the real part of ``a b*`` summed over modes, ``(M, H, W)`` to ``(H, W)``."""
    return (a.real * b.real + a.imag * b.imag).sum(dim=0)
