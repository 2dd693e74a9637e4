"""The unrolled canvas network: physics steps on the object, each followed by a small shared U-Net.

Every step is the preconditioned momentum step of an iterative solver (so the untrained network already reconstructs);
what the network adds after each step is what the patterns of training scans taught it. Patterns are never fed to the
network: it sees the canvas, the last physics step and the illumination, all in real space.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from .augmentation import Turn
from .base import Generator, Measurement
from .physics_step import STEP_SIZE, Descent, momentum_schedule, phase_slope, unit_of
from .unet import UNet

STEPS_FACTOR = 2
"""More steps than in training still improve the picture: the network was trained to help at every one of them."""


class UnrolledGenerator(Generator):
    """See the module's docstring. One set of network weights serves all steps; step sizes are learned per step."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.steps = config.steps
        self.default_steps = STEPS_FACTOR * config.steps
        self.memory_channels = config.memory_channels
        self.network = UNet(
            6 + config.memory_channels, 2 + config.memory_channels, width=config.width, levels=config.levels
        )
        self.log_step_sizes = nn.Parameter(torch.full((config.steps,), math.log(STEP_SIZE)))

    def window_size(self, asked: int, trained: int) -> int:
        """As asked: the whole scan on one canvas makes the best picture, however small the trained groups were."""
        del trained
        return asked

    def unroll(self, measured: Measurement, steps: int | None = None) -> Iterator[Tensor]:
        """Yield the canvas after every step; see :meth:`.generator.Generator.unroll`.

        Steps beyond those of the training use the last learned step size.
        """
        physics = Descent(measured)
        canvas, velocity = measured.start, torch.zeros_like(measured.start)
        turn = Turn.random() if self.training else Turn()
        memory = turn.forth(canvas.real.new_zeros((canvas.shape[0], self.memory_channels, *canvas.shape[-2:])))
        for step in range(self.steps if steps is None else steps):
            direction = physics.direction(canvas)
            size = self.log_step_sizes[min(step, self.steps - 1)].exp()
            velocity = momentum_schedule(step) * velocity + size * direction
            canvas = canvas + velocity
            correction, memory = self._correct(
                turn.forth(canvas), turn.forth(direction), turn.forth(physics.weight), memory
            )
            canvas = canvas + turn.back(correction)
            yield canvas

    def _correct(self, canvas: Tensor, direction: Tensor, weight: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """The network's say: a complex correction of the canvas and the memory for the next step.

        Everything is seen and said relative to the local phase of the canvas. A constant phase, which no pattern
        fixes, then changes nothing, and a network trained on one range of phases serves another.
        """
        unit = unit_of(canvas)
        relative = direction * unit.conj()
        slope_y, slope_x = (phase_slope(unit, axis) for axis in (-2, -1))
        features = [canvas.abs() - 1.0, relative.real, relative.imag, slope_y, slope_x, weight]
        answer = self.network(torch.cat([torch.stack(features, dim=1), memory], dim=1))
        # Bounded, so that a network that meets a scan unlike its training scans cannot run away step by step.
        bounded = torch.tanh(answer[:, :2]) * weight[:, None]
        correction = unit * torch.complex(bounded[:, 0], bounded[:, 1])
        return correction, torch.tanh(memory + answer[:, 2:])
