"""Loops over the residuals of patterns, compiled by numba: the sums of :mod:`...metrics.residuals` in two passes.

Arrays as in :mod:`.loops`, in single precision.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from .compilation import compiled

Array = npt.NDArray[Any]


@compiled
def compare_waves(
    waves: Array,
    amplitudes: Array,
    good_pixels: Array,
    scales: tuple[float, float, float, float],
    tables: tuple[Array, float, Array, float],
    work: Array,
    results: tuple[Array, Array, Array],
) -> None:
    """Replace far-field waves by those of the residuals, and sum the residuals of every pattern.

    Args:
        waves: ``sqrt(N) psi``, ``(C, M, N)``; receives ``psi (a - E sqrt n) / sqrt(I N)``.
        amplitudes: ``(C, N)``.
        good_pixels: ``(N,)``.
        scales: factor of the smallest R-factor, factor of the photons, their ratio, and ``eps`` added to ``I``.
        tables: moments and folded normal distribution of :class:`..photon_noise.NoiseTables`, each with its step.
        work: space, ``(4, ...)`` for some pixels.
        results: ``detector`` ``(2, N)``, to which differences and measured amplitudes are added; ``sums`` ``(C, 5)``
            float64, which receives differences, measured amplitudes, differences expected of photon noise, squared
            residuals and expected ones; ``shares`` ``(C, M, 2)`` real, which receives the means of ``|psi_m|^2 / I``
            times the variance, and on good pixels.
    """
    detector, sums, shares = results
    kind = amplitudes.dtype.type
    one, scale, least, factor = kind(1.0), kind(1.0 / len(good_pixels)), kind(scales[3]), kind(scales[0])
    for j in range(waves.shape[0]):
        sums[j] = 0.0
        shares[j] = 0.0
        for first in range(0, len(good_pixels), work.shape[1]):
            last = min(first + work.shape[1], len(good_pixels))
            model, residual, variance = work[0, : last - first], work[1, : last - first], work[2, : last - first]
            per_count, amplitude, good = work[3, : last - first], amplitudes[j, first:last], good_pixels[first:last]
            _power(waves[j], first, model)
            for x in range(len(model)):
                model[x] = kind(math.sqrt(model[x] * scale + least))
            differences, measured = detector[0, first:last], detector[1, first:last]
            total, seen = kind(0.0), kind(0.0)
            for x in range(len(model)):
                residual[x] = abs(amplitude[x] - factor * model[x]) * good[x]
                total += residual[x]
                seen += amplitude[x]
            for x in range(len(model)):
                differences[x] += residual[x]
                measured[x] += amplitude[x]
            sums[j, 0] += total
            sums[j, 1] += seen
            _residuals(work[:, : last - first], amplitude, good, scales, tables, sums[j, 2:])
            for x in range(len(model)):
                model[x] = one / model[x]
                residual[x] *= model[x] * scale
                per_count[x] = model[x] * model[x] * scale
            for m in range(waves.shape[1]):
                wave, of_noise, known = waves[j, m, first:last], kind(0.0), kind(0.0)
                for x in range(len(model)):
                    share = (wave[x].real * wave[x].real + wave[x].imag * wave[x].imag) * per_count[x]
                    of_noise += share * variance[x]
                    known += share * good[x]
                for x in range(len(model)):
                    wave[x] *= residual[x]
                shares[j, m, 0] += of_noise * scale
                shares[j, m, 1] += known * scale


@compiled
def _power(waves: Array, first: int, row: Array) -> None:
    """Compute ``sum_m |psi_m|^2`` of the pixels from ``first`` on; ``waves`` is ``(M, N)``."""
    row[:] = 0.0
    for m in range(waves.shape[0]):
        wave = waves[m, first : first + len(row)]
        for x in range(len(row)):
            row[x] += wave[x].real * wave[x].real + wave[x].imag * wave[x].imag


@compiled
def _residuals(
    work: Array,
    amplitude: Array,
    good: Array,
    scales: tuple[float, float, float, float],
    tables: tuple[Array, float, Array, float],
    sums: Array,
) -> None:
    """Compute residuals and variances, rows 1 and 2 of ``work``, from expected amplitudes, row 0.

    Differences expected of photon noise, squared residuals and expected ones are added to ``sums`` ``(3,)``.
    """
    moments, root_step, folded, offset_step = tables
    model, residual, variance = work[0], work[1], work[2]
    kind = model.dtype.type
    dose, lag, quarter, eighth = kind(scales[1]), kind(1.0 - scales[2]), kind(0.25), kind(0.125)
    per_root, per_offset = kind(1.0 / root_step), kind(1.0 / offset_step)
    last_root, last_offset = kind(len(moments) - 2), kind(len(folded) - 2)
    noise, squared, expected = kind(0.0), kind(0.0), kind(0.0)
    for x in range(len(model)):
        root = dose * model[x]
        place = root * per_root
        if place < last_root:
            number = np.int32(place)
            part = place - kind(number)
            mean = moments[number, 0] + part * (moments[number + 1, 0] - moments[number, 0])
            spread = moments[number, 1] + part * (moments[number + 1, 1] - moments[number, 1])
            deviation = moments[number, 2] + part * (moments[number + 1, 2] - moments[number, 2])
        else:
            bias = eighth / root
            mean, spread = root - bias, quarter
            deviation = abs(lag * root - bias)
            place = deviation * per_offset
            if place < last_offset:
                number = np.int32(place)
                deviation = folded[number] + (place - kind(number)) * (folded[number + 1] - folded[number])
        noise += deviation * good[x]
        residual[x] = (amplitude[x] - mean) * good[x]
        variance[x] = spread * good[x]
        squared += residual[x] * residual[x]
        expected += variance[x]
    sums[0] += noise
    sums[1] += squared
    sums[2] += expected


@compiled
def add_maps(
    probes: Array,
    chi: Array,
    patch_origins: Array,
    sums: Array,
    shares: Array,
    photons: float,
    work: Array,
    maps: Array,
) -> None:
    """Add the contributions of patterns to the maps of :class:`.sums.ResidualSums`.

    ``probes`` and ``chi`` are ``(C, M, H, W)``, ``sums`` and ``shares`` those of :func:`compare_waves`, ``photons`` is
    the factor of the photons, ``work`` ``(5, W)`` space, and ``maps`` ``(7, h, w)``. The patch origins were checked by
    :func:`.loops.exit_waves`.
    """
    kind = maps.dtype.type
    square = kind(photons * photons)
    light, noise, known, real, imag = work[0], work[1], work[2], work[3], work[4]
    for j in range(probes.shape[0]):
        top, left = patch_origins[j]
        right = left + probes.shape[3]
        for y in range(probes.shape[2]):
            work[:] = 0.0
            for m in range(probes.shape[1]):
                probe, wave = probes[j, m, y], chi[j, m, y]
                of_noise, of_known = shares[j, m, 0], shares[j, m, 1] * square
                for x in range(len(light)):
                    power = probe[x].real * probe[x].real + probe[x].imag * probe[x].imag
                    light[x] += power
                    noise[x] += power * of_noise
                    known[x] += power * of_known
                for x in range(len(light)):
                    real[x] += probe[x].real * wave[x].real + probe[x].imag * wave[x].imag
                    imag[x] += probe[x].real * wave[x].imag - probe[x].imag * wave[x].real
            _add_light(light, kind(sums[j, 0]), kind(sums[j, 1]), maps[:4, top + y, left:right])
            for x in range(len(light)):
                real[x] = real[x] * real[x] + imag[x] * imag[x]
            for k, row in enumerate((real, noise, known)):
                target = maps[4 + k, top + y, left:right]
                for x in range(len(light)):
                    target[x] += row[x]


@compiled
def _add_light(light: Array, different: float, seen: float, rows: Array) -> None:
    """Add the photons of one row, their squares, and their products with two numbers."""
    photons, squares, differences, measured = rows[0], rows[1], rows[2], rows[3]
    for x in range(len(light)):
        photons[x] += light[x]
        squares[x] += light[x] * light[x]
    for x in range(len(light)):
        differences[x] += light[x] * different
        measured[x] += light[x] * seen
