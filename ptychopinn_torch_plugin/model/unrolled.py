"""The unrolled canvas network: physics steps on the object, each followed by a small shared U-Net.

Every step is the preconditioned momentum step of an iterative solver (so the untrained network already reconstructs);
what the network adds after each step is what the patterns of training scans taught it. Patterns are never fed to the
network: it sees the canvas, the last physics step and the illumination, all in real space.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..physics.slow_phase import low_frequency_filter, push_slow_phases
from .blocks import UNet
from .generator import Descend, Generator

ILLUMINATION_FLOOR = 0.05
"""Regularisation of the illumination preconditioner, relative to the brightest pixel."""
MOMENTUM_LIMIT = 0.93
SLOW_PHASE_GAIN = 10.0
"""High, because the steps are few."""
UNIT_FLOOR = 1e-3
"""Keeps the local phase defined where the object is opaque."""


def momentum_schedule(step: int) -> float:
    """Momentum of physics step ``step`` (from 0): ramped up, because early directions are poor."""
    return min(MOMENTUM_LIMIT, step / (step + 5.0))


class UnrolledGenerator(Generator):
    """See the module's docstring. One set of network weights serves all steps; step sizes are learned per step."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.steps = config.steps
        self.memory_channels = config.memory_channels
        self.network = UNet(
            6 + config.memory_channels, 2 + config.memory_channels, width=config.width, levels=config.levels
        )
        self.log_step_sizes = nn.Parameter(torch.full((config.steps,), math.log(1.2)))

    def unroll(
        self, descend: Descend, start: Tensor, illumination: Tensor, steps: int | None = None
    ) -> Iterator[Tensor]:
        """Yield the canvas after every step; see :meth:`.generator.Generator.unroll`.

        Steps beyond those of the training use the last learned step size.
        """
        brightest = illumination.amax(dim=(-2, -1), keepdim=True)
        preconditioner = 1.0 / (illumination + ILLUMINATION_FLOOR * brightest)
        weight = illumination * preconditioner
        gain = low_frequency_filter((start.shape[-2], start.shape[-1]), start.device, SLOW_PHASE_GAIN)
        canvas, velocity = start, torch.zeros_like(start)
        turn = _Turn.random() if self.training else _Turn(0, mirrored=False)
        memory = turn.forth(start.real.new_zeros((start.shape[0], self.memory_channels, *start.shape[-2:])))
        for step in range(self.steps if steps is None else steps):
            direction = push_slow_phases(descend(canvas) * preconditioner, canvas, gain)
            size = self.log_step_sizes[min(step, self.steps - 1)].exp()
            velocity = momentum_schedule(step) * velocity + size * direction
            canvas = canvas + velocity
            correction, memory = self._correct(turn.forth(canvas), turn.forth(direction), turn.forth(weight), memory)
            canvas = canvas + turn.back(correction)
            yield canvas

    def _correct(self, canvas: Tensor, direction: Tensor, weight: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """The network's say: a complex correction of the canvas and the memory for the next step.

        Everything is seen and said relative to the local phase of the canvas. A constant phase, which no pattern
        fixes, then changes nothing, and a network trained on one range of phases serves another.
        """
        unit = canvas / torch.sqrt(canvas.real.square() + canvas.imag.square() + UNIT_FLOOR)
        relative = direction * unit.conj()
        slope_y, slope_x = (_phase_slope(unit, axis) for axis in (-2, -1))
        features = [canvas.abs() - 1.0, relative.real, relative.imag, slope_y, slope_x, weight]
        answer = self.network(torch.cat([torch.stack(features, dim=1), memory], dim=1))
        # Bounded, so that a network that meets a scan unlike its training scans cannot run away step by step.
        bounded = torch.tanh(answer[:, :2]) * weight[:, None]
        correction = unit * torch.complex(bounded[:, 0], bounded[:, 1])
        return correction, torch.tanh(memory + answer[:, 2:])


class _Turn(NamedTuple):
    """A rotation by quarter turns, and a mirror: what a canvas looks like from another side.

    In training every group is shown from a random side, because which way is up teaches nothing.
    """

    quarters: int
    mirrored: bool

    @classmethod
    def random(cls) -> _Turn:
        """One of the eight sides, by torch's random generator."""
        side = int(torch.randint(8, ()))
        return cls(side % 4, mirrored=side >= 4)

    def forth(self, image: Tensor) -> Tensor:
        """Turn ``(..., h, w)``."""
        turned = torch.rot90(image, self.quarters, dims=(-2, -1))
        return turned.flip(-1) if self.mirrored else turned

    def back(self, image: Tensor) -> Tensor:
        """Undo :meth:`forth`."""
        straight = image.flip(-1) if self.mirrored else image
        return torch.rot90(straight, -self.quarters, dims=(-2, -1))


def _phase_slope(unit: Tensor, axis: int) -> Tensor:
    """Sine of the phase step from each pixel to the next along ``axis`` (cyclic), ``(B, h, w)`` real."""
    return (unit.conj() * unit.roll(-1, dims=axis)).imag
