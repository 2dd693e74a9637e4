"""Loops over patterns, compiled by numba: the equations of :mod:`..forward` and :mod:`..derivatives`, in few passes.

All arrays are C-contiguous and of one precision (float32 with complex64, or float64 with complex128), with the axes of
the reference: waves and probes ``(C, M, H, W)``, amplitudes ``(C, H, W)``, patch origins ``(C, 2)`` int64, masks and
phases ``(H, W)``, object arrays ``(h, w)``. Results are written in place, and nothing is allocated. The transforms
between these loops are not scaled; the loops contain their factors, with ``N = H W`` pixels. Patch origins are checked
by :func:`exit_waves` and :func:`add_power`, one of which is called first.

Every loop over x has few arrays: the compiler then checks at run time that they do not overlap, and vectorises it.
Constants get the dtype of the arrays, because a Python number would turn the arithmetic to double precision.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types
from numba.extending import overload

from .compilation import compiled

Array = npt.NDArray[Any]

LOG_2 = np.float32(math.log(2.0))
ROOT_HALF_BITS = np.int32(0x3F3504F3)
"""The bits of ``sqrt(1/2)`` as float32."""
MANTISSA_BITS = np.int32(23)


@compiled
def fill_ramps(shifts: Array, intensities: Array, ramps_y: Array, ramps_x: Array) -> None:
    """Fill in the two factors of the Fourier ramps ``g_j = sqrt(s_j) exp(-2 pi i f r_j)``.

    ``ramps_y`` ``(C, H)`` receives ``sqrt(s_j) exp(-2 pi i f_y r_y)`` and ``ramps_x`` ``(C, W)`` the same along x
    without the root; ``shifts`` is ``(C, 2)`` in pixels, ``intensities`` ``(C,)``.
    """
    for j in range(len(shifts)):
        _fill_ramp(shifts[j, 0], math.sqrt(intensities[j]), ramps_y[j])
        _fill_ramp(shifts[j, 1], 1.0, ramps_x[j])


@compiled
def _fill_ramp(shift: float, factor: float, ramp: Array) -> None:
    size = len(ramp)
    angle = -2.0 * math.pi * shift / size
    step = complex(math.cos(angle), math.sin(angle))
    value = complex(factor, 0.0)
    ramp[0] = value
    for k in range(1, size // 2 + 1):
        value *= step
        ramp[k] = value
        ramp[size - k] = value.conjugate()  # the highest frequency of an even size counts as negative


@compiled
def ramp_spectra(spectrum: Array, ramps_y: Array, ramps_x: Array, spectra: Array) -> None:
    """Compute ``F(P_m) g_j``: ``spectrum`` ``(M, H, W)`` to ``spectra`` ``(C, M, H, W)``."""
    for j in range(len(ramps_y)):
        ramp = ramps_x[j]
        for m in range(spectrum.shape[0]):
            for y in range(spectrum.shape[1]):
                factor = ramps_y[j, y]
                source, target = spectrum[m, y], spectra[j, m, y]
                for x in range(len(target)):
                    target[x] = source[x] * (factor * ramp[x])


@compiled
def multiply_phase(probes: Array, phase: Array) -> None:
    """Multiply the quadratic phase ``Q`` onto all probes."""
    for j in range(probes.shape[0]):
        for m in range(probes.shape[1]):
            for y in range(probes.shape[2]):
                target, source = probes[j, m, y], phase[y]
                for x in range(len(target)):
                    target[x] *= source[x]


@compiled
def _check_patch(top: int, left: int, patch: Array, object_array: Array) -> None:
    bottom, right = top + patch.shape[0], left + patch.shape[1]
    if top < 0 or left < 0 or bottom > object_array.shape[0] or right > object_array.shape[1]:
        raise IndexError('a patch extends beyond the object array')


@compiled
def add_power(probes: Array, patch_origins: Array, total: Array) -> None:
    """Add ``sum_j R_j^T sum_m |P_jm|^2`` to ``total`` ``(h, w)`` real.

    Raises:
        IndexError: a patch extends beyond the object array.
    """
    for j in range(probes.shape[0]):
        top, left = patch_origins[j]
        _check_patch(top, left, probes[j, 0], total)
        for m in range(probes.shape[1]):
            for y in range(probes.shape[2]):
                source = probes[j, m, y]
                target = total[top + y, left : left + len(source)]
                for x in range(len(source)):
                    target[x] += source[x].real * source[x].real + source[x].imag * source[x].imag


@compiled
def exit_waves(object_array: Array, probes: Array, patch_origins: Array, waves: Array) -> None:
    """Compute ``P_jm R_j O`` into ``waves``.

    Raises:
        IndexError: a patch extends beyond the object array.
    """
    for j in range(probes.shape[0]):
        top, left = patch_origins[j]
        _check_patch(top, left, probes[j, 0], object_array)
        for m in range(probes.shape[1]):
            for y in range(probes.shape[2]):
                probe, target = probes[j, m, y], waves[j, m, y]
                transmission = object_array[top + y, left : left + len(probe)]
                for x in range(len(target)):
                    target[x] = probe[x] * transmission[x]


@compiled
def amplitude_factors(
    waves: Array, amplitudes: Array, good_pixels: Array, eps: float, floor: float, work: Array, sums: Array
) -> None:
    """Multiply far-field waves by ``q_j = sqrt(n_j / I_j) - 1``, where ``I_j = sum_m |psi_jm|^2 + eps``.

    Pixels are on one axis here: ``waves`` ``(C, M, N)``, ``amplitudes`` ``(C, N)``, ``good_pixels`` ``(N,)``. ``waves``
    holds ``sqrt(N) psi`` and becomes ``psi q / sqrt(N)``; ``work`` is space for some pixels. ``sums`` ``(C, 3)``
    float64 receives the deviance, the expected and the measured photons of every pattern. ``floor`` is not used: both
    likelihoods have the same arguments.
    """
    kind = amplitudes.dtype.type
    one, scale, least = kind(1.0), kind(1.0 / len(good_pixels)), kind(eps)
    for j in range(waves.shape[0]):
        sums[j] = 0.0
        for first in range(0, len(good_pixels), len(work)):
            last = min(first + len(work), len(good_pixels))
            row, amplitude, good = work[: last - first], amplitudes[j, first:last], good_pixels[first:last]
            _power(waves[j], first, row)
            deviance, expected, measured = kind(0.0), kind(0.0), kind(0.0)
            for x in range(len(row)):
                counts = row[x] * scale + least
                inverse = one / kind(math.sqrt(counts))
                difference = counts * inverse - amplitude[x]
                deviance += difference * difference * good[x]
                expected += counts * good[x]
                measured += amplitude[x] * amplitude[x] * good[x]
                row[x] = (amplitude[x] * inverse - one) * good[x] * scale
            _multiply(waves[j], first, row)
            sums[j, 0] += 4.0 * deviance
            sums[j, 1] += expected
            sums[j, 2] += measured


@compiled
def poisson_factors(
    waves: Array, amplitudes: Array, good_pixels: Array, eps: float, floor: float, work: Array, sums: Array
) -> None:
    """Multiply far-field waves by ``q_j = (n_j - I_j) / (2 (I_j + f))``; arguments as :func:`amplitude_factors`.

    With ``t = (I - n) / (n + f)`` the deviance is ``2 (n + f) (t - log(1 + t))``: no large numbers are subtracted.
    """
    kind = amplitudes.dtype.type
    one, half, scale, least, dark = kind(1.0), kind(0.5), kind(1.0 / len(good_pixels)), kind(eps), kind(floor)
    for j in range(waves.shape[0]):
        sums[j] = 0.0
        for first in range(0, len(good_pixels), len(work)):
            last = min(first + len(work), len(good_pixels))
            row, amplitude, good = work[: last - first], amplitudes[j, first:last], good_pixels[first:last]
            _power(waves[j], first, row)
            deviance, expected, measured = kind(0.0), kind(0.0), kind(0.0)
            for x in range(len(row)):
                counts = row[x] * scale + least
                photons = amplitude[x] * amplitude[x]
                excess = (counts - photons) / (photons + dark)
                deviance += (photons + dark) * (excess - _logarithm(one + excess)) * good[x]
                expected += counts * good[x]
                measured += photons * good[x]
                row[x] = half * (photons - counts) / (counts + dark) * good[x] * scale
            _multiply(waves[j], first, row)
            sums[j, 0] += 2.0 * deviance
            sums[j, 1] += expected
            sums[j, 2] += measured


@compiled
def fit_waves(
    waves: Array,
    amplitudes: Array,
    good_pixels: Array,
    likelihood: int,
    floors: tuple[float, float],
    work: Array,
    updates: Array,
    costs: Array,
) -> None:
    """Compute the deviance of every pattern into ``costs`` ``(C,)`` float64, and the waves of the object update.

    Arguments as :func:`amplitude_factors`; ``floors`` are its ``eps`` and ``floor``, and ``likelihood`` is 0
    (amplitude), 1 (poisson) or 2 (mae), see :mod:`..noise_models`. ``waves`` holds ``sqrt(N) psi`` and stays;
    ``updates``, of the same shape, receives ``psi q / sqrt(N)`` with the ``q`` of the amplitude likelihood, unless its
    length is 0.
    """
    kind = amplitudes.dtype.type
    one, scale, least, dark = kind(1.0), kind(1.0 / len(good_pixels)), kind(floors[0]), kind(floors[1])
    for j in range(waves.shape[0]):
        total = 0.0
        for first in range(0, len(good_pixels), len(work)):
            last = min(first + len(work), len(good_pixels))
            row, amplitude, good = work[: last - first], amplitudes[j, first:last], good_pixels[first:last]
            _power(waves[j], first, row)
            cost = kind(0.0)
            if likelihood == 0:
                for x in range(len(row)):
                    difference = kind(math.sqrt(row[x] * scale + least)) - amplitude[x]
                    cost += difference * difference * good[x]
                total += 4.0 * cost
            elif likelihood == 1:
                for x in range(len(row)):
                    floored = amplitude[x] * amplitude[x] + dark
                    excess = (row[x] * scale + least + dark - floored) / floored
                    cost += floored * (excess - _logarithm(one + excess)) * good[x]
                total += 2.0 * cost
            else:
                for x in range(len(row)):
                    cost += abs(kind(math.sqrt(row[x] * scale + least)) - amplitude[x]) * good[x]
                total += math.sqrt(2.0 * math.pi) * cost
            if len(updates) > 0:
                for x in range(len(row)):
                    inverse = one / kind(math.sqrt(row[x] * scale + least))
                    row[x] = (amplitude[x] * inverse - one) * good[x] * scale
                for m in range(waves.shape[1]):
                    source, target = waves[j, m, first:last], updates[j, m, first:last]
                    for x in range(len(row)):
                        target[x] = source[x] * row[x]
        costs[j] = total


@compiled
def fit_gradient_waves(
    waves: Array,
    directions: Array,
    amplitudes: Array,
    good_pixels: Array,
    likelihood: int,
    floors: tuple[float, float],
    weight: float,
    work: Array,
) -> None:
    """Compute the derivative of what :func:`fit_waves` computes with respect to ``psi``, over ``sqrt(N)``.

    ``directions`` holds ``sqrt(N) v``, the waves of the derivative with respect to the object update (zeros if there
    is none); ``weight`` is the derivative with respect to the deviance ``D``. With ``s = Re sum_m v_m* psi_m``, it
    becomes ``(q v_m + 2 (q' s + weight D') psi_m) / sqrt(N)``, where ``'`` is the derivative with respect to ``I``.
    ``work`` ``(2, ...)`` is space for some pixels.
    """
    kind = amplitudes.dtype.type
    one, scale, least, dark = kind(1.0), kind(1.0 / len(good_pixels)), kind(floors[0]), kind(floors[1])
    two, share, root = kind(2.0), kind(weight), kind(math.sqrt(2.0 * math.pi) * weight)
    for j in range(waves.shape[0]):
        for first in range(0, len(good_pixels), work.shape[1]):
            last = min(first + work.shape[1], len(good_pixels))
            row, slope = work[0, : last - first], work[1, : last - first]
            amplitude, good = amplitudes[j, first:last], good_pixels[first:last]
            _power(waves[j], first, row)
            if likelihood == 0:
                for x in range(len(row)):
                    inverse = one / kind(math.sqrt(row[x] * scale + least))
                    slope[x] = two * share * (two * two) * (one - amplitude[x] * inverse) * good[x] * scale
            elif likelihood == 1:
                for x in range(len(row)):
                    counts = row[x] * scale + least
                    excess = counts - amplitude[x] * amplitude[x]
                    slope[x] = two * share * two * excess / (counts + dark) * good[x] * scale
            else:
                for x in range(len(row)):
                    modulus = kind(math.sqrt(row[x] * scale + least))
                    difference = modulus - amplitude[x]
                    sign = kind(difference > 0) - kind(difference < 0)
                    slope[x] = root * sign / modulus * good[x] * scale
            _add_curvature(waves[j], directions[j], amplitude, good, floors[0], first, row, slope)
            for m in range(waves.shape[1]):
                wave, target = waves[j, m, first:last], directions[j, m, first:last]
                for x in range(len(row)):
                    target[x] = target[x] * row[x] + wave[x] * slope[x]


@compiled
def _add_curvature(
    waves: Array,
    directions: Array,
    amplitude: Array,
    good: Array,
    eps: float,
    first: int,
    row: Array,
    slope: Array,
) -> None:
    """Add ``2 q' s`` to ``slope`` and replace the power in ``row`` by ``q``, both over N."""
    kind = row.dtype.type
    one, scale, least = kind(1.0), kind(1.0 / waves.shape[1]), kind(eps)
    for x in range(len(row)):
        cross = kind(0.0)
        for m in range(waves.shape[0]):
            wave, towards = waves[m, first + x], directions[m, first + x]
            cross += wave.real * towards.real + wave.imag * towards.imag
        inverse = one / kind(math.sqrt(row[x] * scale + least))
        ratio = amplitude[x] * inverse
        slope[x] -= ratio * inverse * inverse * (cross * scale) * good[x] * scale
        row[x] = (ratio - one) * good[x] * scale


@compiled
def _power(waves: Array, first: int, row: Array) -> None:
    """Compute ``sum_m |psi_m|^2`` of the pixels from ``first`` on; ``waves`` is ``(M, N)``."""
    wave = waves[0, first : first + len(row)]
    for x in range(len(row)):
        row[x] = wave[x].real * wave[x].real + wave[x].imag * wave[x].imag
    for m in range(1, waves.shape[0]):
        wave = waves[m, first : first + len(row)]
        for x in range(len(row)):
            row[x] += wave[x].real * wave[x].real + wave[x].imag * wave[x].imag


@compiled
def _multiply(waves: Array, first: int, row: Array) -> None:
    """Multiply the waves of all modes by ``row``, at the pixels from ``first`` on."""
    for m in range(waves.shape[0]):
        wave = waves[m, first : first + len(row)]
        for x in range(len(row)):
            wave[x] *= row[x]


@compiled
def add_object_update(chi: Array, probes: Array, patch_origins: Array, total: Array) -> None:
    """Add ``sum_jm R_j^T(P_jm* chi_jm)`` to ``total`` ``(h, w)``."""
    for j in range(probes.shape[0]):
        top, left = patch_origins[j]
        for m in range(probes.shape[1]):
            for y in range(probes.shape[2]):
                probe, wave = probes[j, m, y], chi[j, m, y]
                target = total[top + y, left : left + len(wave)]
                for x in range(len(wave)):
                    target[x] += probe[x].conjugate() * wave[x]


@compiled
def to_probe_side(chi: Array, object_array: Array, patch_origins: Array, phase: Array) -> None:
    """Replace ``chi_jm`` by ``Q* O_j* chi_jm``."""
    for j in range(chi.shape[0]):
        top, left = patch_origins[j]
        for m in range(chi.shape[1]):
            for y in range(chi.shape[2]):
                wave, factor = chi[j, m, y], phase[y]
                transmission = object_array[top + y, left : left + len(wave)]
                for x in range(len(wave)):
                    wave[x] *= (transmission[x] * factor[x]).conjugate()


@compiled
def add_transmittance(
    object_array: Array, patch_origins: Array, intensities: Array, products: Array, total: Array, matrices: Array
) -> None:
    """Add ``sum_j s_j |O_j|^2`` to ``total`` ``(H, W)``, and compute ``H_j`` of the positions.

    ``products`` ``(3, H, W)`` are the products of the probe's slopes (:func:`..derivatives.slope_products`), and
    ``matrices`` ``(C, 3)`` receives ``s_j sum_x |O_j|^2`` times each of them.
    """
    kind = total.dtype.type
    for j in range(len(patch_origins)):
        top, left = patch_origins[j]
        yy, xx, yx = 0.0, 0.0, 0.0
        for y in range(total.shape[0]):
            target = total[y]
            transmission = object_array[top + y, left : left + len(target)]
            product_yy, product_xx, product_yx = products[0, y], products[1, y], products[2, y]
            row_yy, row_xx, row_yx = kind(0.0), kind(0.0), kind(0.0)
            for x in range(len(target)):
                power = transmission[x].real * transmission[x].real + transmission[x].imag * transmission[x].imag
                target[x] += intensities[j] * power
            for x in range(len(target)):
                power = transmission[x].real * transmission[x].real + transmission[x].imag * transmission[x].imag
                row_yy += power * product_yy[x]
                row_xx += power * product_xx[x]
                row_yx += power * product_yx[x]
            yy += row_yy
            xx += row_xx
            yx += row_yx
        matrices[j, 0], matrices[j, 1], matrices[j, 2] = yy * intensities[j], xx * intensities[j], yx * intensities[j]


@compiled
def add_probe_spectra(
    back: Array,
    ramps_y: Array,
    ramps_x: Array,
    spectrum: Array,
    frequencies: Array,
    total: Array,
    gradients: Array,
) -> None:
    """Add ``sum_j S_jm``, with ``S_jm = g_j* F(Q* O_j* chi_jm)``, to ``total`` ``(M, H, W)``.

    ``back`` holds ``F(Q* O_j* chi_jm)``, ``spectrum`` ``(M, H, W)`` is ``F(P_m) / N`` and ``frequencies`` ``(2, H, W)``
    are the angular frequencies along y and x. ``gradients`` ``(C, 2)`` receives ``Re sum_m <-i f F(P_m), S_jm> / N``.
    """
    kind = frequencies.dtype.type
    pixels = frequencies[0].size
    flat_spectrum, flat_total = spectrum.reshape(-1, pixels), total.reshape(-1, pixels)
    flat_frequencies = frequencies.reshape(2, pixels)
    for j in range(back.shape[0]):
        ramp = ramps_x[j]
        along_y, along_x = kind(0.0), kind(0.0)
        for m in range(back.shape[1]):
            for y in range(back.shape[2]):
                factor, wave = ramps_y[j, y], back[j, m, y]
                for x in range(len(wave)):
                    wave[x] *= (factor * ramp[x]).conjugate()
            wave, target, reference = back[j, m].reshape(-1), flat_total[m], flat_spectrum[m]
            frequency_y, frequency_x = flat_frequencies[0], flat_frequencies[1]
            for x in range(pixels):
                target[x] += wave[x]
            for x in range(pixels):
                cross = reference[x].imag * wave[x].real - reference[x].real * wave[x].imag
                along_y += cross * frequency_y[x]
                along_x += cross * frequency_x[x]
        gradients[j, 0], gradients[j, 1] = along_y, along_x


def _logarithm(value: float) -> float:
    """Return the natural logarithm; of a float32 in arithmetic that vectorises, to 1e-7."""
    return math.log(value)


@overload(_logarithm)
def _logarithm_for(value: Any) -> Any:  # noqa: ANN401 - numba compares these annotations
    return _single_logarithm if value == types.float32 else _double_logarithm


def _double_logarithm(value: Any) -> Any:  # noqa: ANN401
    return math.log(value)


def _single_logarithm(value: Any) -> Any:  # noqa: ANN401
    # value = 2^k m with sqrt(1/2) <= m < sqrt(2);  log m = 2 artanh z, z = (m - 1) / (m + 1), |z| < .172
    bits = np.float32(value).view(np.int32)
    exponent = (bits - ROOT_HALF_BITS) >> MANTISSA_BITS
    mantissa = np.int32(bits - (exponent << MANTISSA_BITS)).view(np.float32)
    one = np.float32(1.0)
    z = (mantissa - one) / (mantissa + one)
    square = z * z
    series = np.float32(1 / 7) + square * np.float32(1 / 9)
    series = np.float32(1 / 5) + square * series
    series = np.float32(1 / 3) + square * series
    return np.float32(exponent) * LOG_2 + np.float32(2.0) * z * (one + square * series)
