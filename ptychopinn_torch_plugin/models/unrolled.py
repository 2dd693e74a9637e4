"""The unrolled network: physics steps on the object, each followed by a small shared U-Net.

Learned unrolling (J. Adler & O. Oktem, IEEE Trans. Med. Imaging 37, 1322 (2018); K. Hammernik et al., Magn. Reson.
Med. 79, 3055 (2018)). With the momentum step of :mod:`.physics_step`, learned step sizes ``t_k``, the local phase
``u = O / |O|`` and the network ``N`` with memory ``M``, step ``k`` is::

    V <- b_k V + t_k G(O)                        G: preconditioned object update
    O <- O + V
    (C, M) <- N(|O| - 1, u* G, slopes of u, W, M)
    O <- O + u W tanh(C)                         W: relative illumination, 0 to 1

The network never receives patterns, only real-space images, relative to the local phase: a constant phase, which no
pattern fixes, changes nothing, and a network trained on one range of phases works on another. Its last layer starts at
zero, so the untrained network is the iterative solver; ``tanh`` bounds the correction of a single step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..physics.local_phase import IMAGES
from .augmentation import Augmentation
from .base import Generator, Measurement
from .physics_step import OBJECT_STEP, PreconditionedUpdate, momentum
from .unet import UNet

STEPS_FACTOR = 2
"""Steps of inference per step of training; more steps still improve the object, since each was trained to."""


class UnrolledGenerator(Generator):
    """See the module's docstring. One set of network weights serves all steps; step sizes are learned per step."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.steps = config.steps
        self.default_steps = STEPS_FACTOR * config.steps
        self.memory_channels = config.memory_channels
        self.network = UNet(
            IMAGES + config.memory_channels, 2 + config.memory_channels, width=config.width, levels=config.levels
        )
        self.log_step_sizes = nn.Parameter(torch.full((config.steps,), math.log(OBJECT_STEP)))

    def window_size(self, requested: int, trained: int) -> int:
        """Return ``requested``: the whole scan in one array gives the best object, whatever size was trained on."""
        del trained
        return requested

    def unroll(self, measured: Measurement, steps: int | None = None) -> Iterator[Tensor]:
        """Yield the object after every step; see :meth:`.base.Generator.unroll`.

        Steps beyond those of the training use the last learned step size.
        """
        update = PreconditionedUpdate(measured)
        estimate, velocity = measured.start, torch.zeros_like(measured.start)
        augmentation = Augmentation.random() if self.training else Augmentation()
        block = self.network.unshuffle
        shape = augmentation.apply(estimate).shape
        memory = estimate.real.new_zeros(
            (shape[0], self.memory_channels * block**2, *self.network.grid_of((shape[1], shape[2])))
        )
        for step in range(self.steps if steps is None else steps):
            direction = update(estimate)
            size = self.log_step_sizes[min(step, self.steps - 1)].exp()
            velocity = momentum(step) * velocity + size * direction
            estimate = estimate + velocity
            shown, towards, weight = (augmentation.apply(image) for image in (estimate, direction, update.weight))
            answer = self.network.on_blocks(measured.network_input(shown, towards, weight, memory, block))
            # Bounded, so that the corrections of a network cannot grow from step to step on a scan unlike its training.
            correction, memory = measured.network_correction(shown, weight, answer, memory, block)
            estimate = estimate + augmentation.invert(correction)
            yield estimate
