"""The curvature of a given probe."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

TRIALS = 81

Modes = npt.NDArray[np.complexfloating]


@dataclass(frozen=True)
class Value:
    """A number with its standard error."""

    value: float
    error: float


def curvature_of(modes: Modes, largest: float) -> Value:
    """Return the curvature of the strongest mode: where the probe, propagated back by it, is smallest.

    The size is measured by the inverse of ``sum |P|^4`` over ``(sum |P|^2)^2``; a tilt or a shift does not change it.

    Args:
        modes: ``(M, N, N)`` complex.
        largest: largest curvature to try, both signs, square object pixels.
    """
    strongest = modes[int(np.argmax(np.square(np.abs(modes)).sum(axis=(1, 2))))]
    spectrum = np.fft.fft2(strongest)
    y, x = (np.fft.fftfreq(side) for side in strongest.shape)
    squared = y[:, None] ** 2 + x**2

    def peak(curvature: float) -> float:
        wave = np.fft.ifft2(spectrum * np.exp(1j * np.pi * curvature * squared))
        intensity = np.square(np.abs(wave))
        return float(np.square(intensity).sum() / intensity.sum() ** 2)

    trials = np.linspace(-largest, largest, TRIALS)
    step = float(trials[1] - trials[0])
    best = float(trials[int(np.argmax([peak(float(value)) for value in trials]))])
    for _ in range(4):
        near = best + step * np.linspace(-1.0, 1.0, 9)
        best = float(near[int(np.argmax([peak(float(value)) for value in near]))])
        step /= 4
    return Value(best, step)
