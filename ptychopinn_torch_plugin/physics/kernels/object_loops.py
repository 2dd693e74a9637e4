"""Loops over the object array, compiled by numba: total variation and the low-frequency preconditioner.

Arrays are C-contiguous, ``(h, w)`` or ``(B, h, w)``, complex64 or float32 as said (or both in double precision), and
cyclic, as in the reference. Results are written in place.
"""

from __future__ import annotations

import math
from typing import Any

import numpy.typing as npt

from .compilation import compiled

Array = npt.NDArray[Any]


@compiled
def add_divergence(object_array: Array, ratio: Array, dual_y: Array, dual_x: Array, result: Array) -> None:
    """Compute ``Z + (lambda / W) div p`` into ``result``: the object that belongs to a dual variable ``p``."""
    height, width = object_array.shape
    for y in range(height):
        target, source, factor = result[y], object_array[y], ratio[y]
        here, above, along = dual_y[y], dual_y[y - 1], dual_x[y]  # the row above the first is the last
        for x in range(width):
            target[x] = here[x] - above[x]
        target[0] += along[0] - along[width - 1]
        for x in range(1, width):
            target[x] += along[x] - along[x - 1]
        for x in range(width):
            target[x] = source[x] + factor[x] * target[x]


@compiled
def ascend_dual(object_array: Array, size: Array, dual_y: Array, dual_x: Array) -> None:
    """Compute ``p <- (p + t grad O) / max(1, |p + t grad O|)``, with step sizes ``t``."""
    height, width = object_array.shape
    one = size.dtype.type(1.0)
    for y in range(height):
        here, below, step = object_array[y], object_array[(y + 1) % height], size[y]
        along_y, along_x = dual_y[y], dual_x[y]
        for x in range(width):
            along_y[x] += step[x] * (below[x] - here[x])
        for x in range(width - 1):
            along_x[x] += step[x] * (here[x + 1] - here[x])
        along_x[width - 1] += step[width - 1] * (here[0] - here[width - 1])
        for x in range(width):
            of_y = along_y[x].real * along_y[x].real + along_y[x].imag * along_y[x].imag
            of_x = along_x[x].real * along_x[x].real + along_x[x].imag * along_x[x].imag
            factor = one / size.dtype.type(math.sqrt(max(of_y + of_x, one)))
            along_y[x] *= factor
            along_x[x] *= factor


@compiled
def phase_direction(
    update: Array, weight: Array, object_array: Array, opaque: float, direction: Array, phase: Array
) -> None:
    """Compute ``G = U w`` and ``phi = Im(O* G) / max(|O|^2, opaque)``; all ``(B, h, w)``, ``phase`` and ``w`` real."""
    least = phase.dtype.type(opaque)
    for b in range(update.shape[0]):
        for y in range(update.shape[1]):
            source, target, factor, wave, angle = (
                update[b, y],
                direction[b, y],
                weight[b, y],
                object_array[b, y],
                phase[b, y],
            )
            for x in range(len(target)):
                target[x] = source[x] * factor[x]
            for x in range(len(target)):
                power = wave[x].real * wave[x].real + wave[x].imag * wave[x].imag
                cross = wave[x].real * target[x].imag - wave[x].imag * target[x].real
                angle[x] = cross / max(power, least)


@compiled
def add_phase_direction(object_array: Array, phase: Array, direction: Array) -> None:
    """Add ``i O phi`` to ``direction``; all ``(B, h, w)``, ``phase`` real."""
    for b in range(direction.shape[0]):
        for y in range(direction.shape[1]):
            target, wave, angle = direction[b, y], object_array[b, y], phase[b, y]
            for x in range(len(target)):
                target[x] += complex(-wave[x].imag * angle[x], wave[x].real * angle[x])


@compiled
def phase_cross(gradient: Array, object_array: Array, phase: Array) -> None:
    """Compute ``Im(O* g)`` into ``phase``; all ``(B, h, w)``, ``phase`` real."""
    for b in range(gradient.shape[0]):
        for y in range(gradient.shape[1]):
            source, wave, angle = gradient[b, y], object_array[b, y], phase[b, y]
            for x in range(len(source)):
                angle[x] = wave[x].real * source[x].imag - wave[x].imag * source[x].real


@compiled
def precondition_gradient(
    gradient: Array,
    update: Array,
    weight: Array,
    object_array: Array,
    filtered: Array,
    opaque: float,
    of_update: Array,
    of_object: Array,
) -> None:
    """Compute the derivatives of ``G + i O low`` with ``G = U w``, where ``low`` is the filtered ``phi``.

    ``filtered`` ``(2, B, h, w)`` holds ``low``, and ``back``: the filtered ``Im(O* g)`` of the derivative ``g`` with
    respect to the result. With
    ``m = max(|O|^2, opaque)`` and ``phi = Im(O* G) / m``::

        of_update = w (g + i O back / m)
        of_object = -i (low g + back G / m), and -2 O phi back / m where the object is not opaque
    """
    least = filtered.dtype.type(opaque)
    one, two = filtered.dtype.type(1.0), filtered.dtype.type(2.0)
    for b in range(gradient.shape[0]):
        for y in range(gradient.shape[1]):
            source, wave, towards, factor = gradient[b, y], object_array[b, y], update[b, y], weight[b, y]
            target, second = of_update[b, y], of_object[b, y]
            smooth, returned = filtered[0, b, y], filtered[1, b, y]
            for x in range(len(source)):
                power = wave[x].real * wave[x].real + wave[x].imag * wave[x].imag
                share = returned[x] / max(power, least)
                target[x] = factor[x] * complex(
                    source[x].real - wave[x].imag * share, source[x].imag + wave[x].real * share
                )
            for x in range(len(source)):
                power = wave[x].real * wave[x].real + wave[x].imag * wave[x].imag
                divisor = max(power, least)
                share = returned[x] / divisor
                real, imag = towards[x].real * factor[x], towards[x].imag * factor[x]
                phase = (wave[x].real * imag - wave[x].imag * real) / divisor
                decay = two * phase * share * (one if power > least else one - one)
                second[x] = complex(
                    smooth[x] * source[x].imag + share * imag - decay * wave[x].real,
                    -smooth[x] * source[x].real - share * real - decay * wave[x].imag,
                )


@compiled
def fill_network_input(
    object_array: Array,
    direction: Array,
    weight: Array,
    memory: Array,
    block: int,
    opaque: float,
    rows: Array,
    images: Array,
) -> None:
    """Fill in the input of the unrolled network (:func:`..local_phase.network_input`), channels last.

    ``memory`` ``(B, h', w', K)`` and ``images`` ``(B, h', w', 6 block**2 + K)`` are on the coarser grid; pixels outside
    the object array stay as they are. ``rows`` ``(2, w + 1)`` complex is space for the local phase of two rows.
    """
    one, pixels = weight.dtype.type(1.0), block * block
    height, width = object_array.shape[1:]
    for b in range(object_array.shape[0]):
        _local_phase(object_array[b, 0], opaque, rows[0])
        for y in range(height):
            here, below = rows[y % 2], rows[(y + 1) % 2]
            _local_phase(object_array[b, (y + 1) % height], opaque, below)
            here[width] = here[0]
            wave, towards, light = object_array[b, y], direction[b, y], weight[b, y]
            target, first = images[b, y // block], (y % block) * block
            for left in range(0, width, block):
                place = target[left // block]
                for x in range(left, min(left + block, width)):
                    unit, lower, right, channel = here[x], below[x], here[x + 1], first + x - left
                    modulus = math.sqrt(wave[x].real * wave[x].real + wave[x].imag * wave[x].imag)
                    place[channel] = modulus - one
                    place[channel + pixels] = towards[x].real * unit.real + towards[x].imag * unit.imag
                    place[channel + 2 * pixels] = towards[x].imag * unit.real - towards[x].real * unit.imag
                    place[channel + 3 * pixels] = unit.real * lower.imag - unit.imag * lower.real
                    place[channel + 4 * pixels] = unit.real * right.imag - unit.imag * right.real
                    place[channel + 5 * pixels] = light[x]
        for y in range(memory.shape[1]):
            for x in range(memory.shape[2]):
                for channel in range(memory.shape[3]):
                    images[b, y, x, 6 * pixels + channel] = memory[b, y, x, channel]


@compiled
def _local_phase(wave: Array, opaque: float, unit: Array) -> None:
    """Compute ``O / sqrt(|O|^2 + opaque)`` of one row into ``unit``, which may be longer."""
    kind = wave.real.dtype.type
    one, least = kind(1.0), kind(opaque)
    for x in range(len(wave)):
        power = wave[x].real * wave[x].real + wave[x].imag * wave[x].imag
        unit[x] = wave[x] * (one / kind(math.sqrt(power + least)))


@compiled
def add_memory(memory: Array, block: int, height: int, width: int, answer: Array) -> None:
    """Add ``memory`` ``(B, h', w', K)`` to the last channels of ``answer`` ``(B, h', w', 2 block**2 + K)``.

    They become 0 outside the object array of ``height`` and ``width``.
    """
    pixels = block * block
    first = 2 * pixels
    for b in range(answer.shape[0]):
        for y in range(answer.shape[1]):
            for x in range(answer.shape[2]):
                for channel in range(memory.shape[3]):
                    answer[b, y, x, first + channel] += memory[b, y, x, channel]
                if (y + 1) * block > height or (x + 1) * block > width:
                    for channel in range(memory.shape[3]):
                        place = channel % pixels
                        if y * block + place // block >= height or x * block + place % block >= width:
                            answer[b, y, x, first + channel] = 0.0


@compiled
def network_correction(
    object_array: Array, weight: Array, bounded: Array, block: int, opaque: float, correction: Array
) -> None:
    """Compute ``u W (c_0 + i c_1)`` with the local phase ``u`` and the first channels ``c`` of ``bounded``.

    ``bounded`` ``(B, h', w', ...)`` is on the coarser grid, everything else ``(B, h, w)``.
    """
    pixels, width = block * block, object_array.shape[2]
    for b in range(object_array.shape[0]):
        for y in range(object_array.shape[1]):
            light, target = weight[b, y], correction[b, y]
            source, first = bounded[b, y // block], (y % block) * block
            _local_phase(object_array[b, y], opaque, target)
            for left in range(0, width, block):
                place = source[left // block]
                for x in range(left, min(left + block, width)):
                    channel = first + x - left
                    target[x] *= light[x] * complex(place[channel], place[channel + pixels])
