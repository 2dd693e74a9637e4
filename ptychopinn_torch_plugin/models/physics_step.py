"""The physics step that generators share: the preconditioned momentum step of an iterative solver."""

from __future__ import annotations

import torch
from torch import Tensor

from ..physics.preconditioner import low_frequency_filter, precondition_low_frequencies
from .base import Measurement

ILLUMINATION_FLOOR = 0.05
"""Regularisation of the illumination preconditioner, relative to the brightest pixel."""
MOMENTUM_LIMIT = 0.93
STEP_SIZE = 1.2
SLOW_PHASE_GAIN = 10.0
"""High, because the steps are few."""
UNIT_FLOOR = 1e-3
"""Keeps the local phase defined where the object is opaque."""


def momentum_schedule(step: int) -> float:
    """Momentum of physics step ``step`` (from 0): ramped up, because early directions are poor."""
    return min(MOMENTUM_LIMIT, step / (step + 5.0))


class Descent:
    """Preconditioned directions of a measurement."""

    def __init__(self, measured: Measurement) -> None:
        self._descend = measured.descend
        light = measured.illumination
        self.preconditioner = 1.0 / (light + ILLUMINATION_FLOOR * light.amax(dim=(-2, -1), keepdim=True))
        self.weight = light * self.preconditioner
        """How much the patterns say about each pixel, ``(B, h, w)`` real, 0 to 1."""
        self._gain = low_frequency_filter((light.shape[-2], light.shape[-1]), light.device, SLOW_PHASE_GAIN)

    def direction(self, canvas: Tensor) -> Tensor:
        """Where the patterns want ``canvas`` to go, ``(B, h, w)`` complex; a step of size 1 is about right."""
        return precondition_low_frequencies(self._descend(canvas) * self.preconditioner, canvas, self._gain)


def unit_of(image: Tensor) -> Tensor:
    """The local phase of an image as a number of modulus 1 (less where it is opaque), same shape and dtype."""
    return image / torch.sqrt(image.real.square() + image.imag.square() + UNIT_FLOOR)


def phase_slope(unit: Tensor, axis: int) -> Tensor:
    """Sine of the phase step from each pixel to the next along ``axis`` (cyclic), ``(..., h, w)`` real."""
    return (unit.conj() * unit.roll(-1, dims=axis)).imag
