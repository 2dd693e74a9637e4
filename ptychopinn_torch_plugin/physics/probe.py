"""Probes at scan positions, their power, their illumination of the object, and their photon scale."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from .forward import PatternBatch, power, simulate
from .patches import accumulate_patches, position_dtype

COVERAGE_FLOOR = 1e-3
"""A pixel counts as illuminated above this share of the photons on the brightest pixel."""


def shift_probe(probe: Tensor, ramps: Tensor, phase: Tensor | None = None) -> Tensor:
    """Shift the probe to every position, so that it can multiply an object patch.

    Args:
        probe: ``(M, H, W)`` complex, incoherent modes.
        ramps: ``(..., H, W)`` complex, Fourier multipliers of the subpixel shifts (:func:`~.propagation.shift_ramp`).
        phase: ``(H, W)`` complex of modulus 1, multiplied onto every shifted probe (see
            :func:`~.propagation.quadratic_phase`), or None.

    Returns:
        ``(..., M, H, W)`` complex.
    """
    shifted: Tensor = torch.fft.ifft2(torch.fft.fft2(probe) * ramps[..., None, :, :].to(probe.dtype))
    return shifted if phase is None else shifted * phase.to(shifted.dtype)


def illumination(probes: Tensor, patch_origins: Tensor, object_shape: tuple[int, int]) -> Tensor:
    """Compute the photons of all positions on each object pixel, for a transparent object.

    Args:
        probes: ``(B, C, M, H, W)`` complex, as returned by :func:`shift_probe`.
        patch_origins: ``(B, C, 2)`` int64.
        object_shape: ``(h, w)``.

    Returns:
        ``(B, h, w)`` real.
    """
    return accumulate_patches(power(probes), patch_origins, object_shape)


def is_illuminated(photons: Tensor, floor: float = COVERAGE_FLOOR) -> Tensor:
    """Return where ``photons`` ``(h, w)`` real exceed the share ``floor`` of their maximum, ``(h, w)`` bool."""
    return photons > floor * photons.max()


def fit_probe_scale(batches: Iterable[PatternBatch]) -> float:
    """Fit the factor for the probe that makes the power simulated with a transparent object the measured power.

    Three scale conventions meet in the products around Ptychodus, so the scale of an incoming probe has no meaning.

    Args:
        batches: patterns of the scan, with probes of any one scale; only measured pixels count.

    Returns:
        A number ``s``: with ``s * probe``, ``sum |P|^2`` is the mean number of photons per pattern. NaN if no
        simulated power falls on the measured pixels.
    """
    photons = []
    with torch.no_grad():
        for batch in batches:
            probes = batch.probes.flatten(0, 1)[:, None]
            origins = torch.zeros_like(batch.patch_origins).flatten(0, 1)[:, None]
            transparent = probes.new_ones((probes.shape[0], *probes.shape[-2:]))
            expected = simulate(transparent, probes, origins).expected
            accurate = position_dtype(expected.device)
            counts = (batch.amplitudes.square(), expected)
            photons.append(torch.stack([(part * batch.good_pixels).sum(dtype=accurate) for part in counts]))
        # One transfer for all batches: every transfer waits for the device.
        measured, simulated = torch.stack(photons).sum(dim=0).tolist()
    return math.sqrt(measured / simulated) if simulated > 0 else math.nan
