"""The patch network: one pass from a group of patterns to the object patches of its positions.

PtychoPINN's own form (Hoidn et al., Sci Rep 13, 22789, 2023), with one difference that matters: the network is not fed
patterns, which would leave it to learn a Fourier inversion, but what a few preconditioned gradient steps from a flat
object make of them in real space: the guess. Every position shows its cut of the guess and where its own pattern and
those of the group want it to go; the answer is an amplitude and a phase that the guess is multiplied by. The patches
of a group are then placed, added up and divided by their weights (the constraint map): all of them show one object.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ..config import ModelConfig
from ..physics.forward import Frames, frame_descents
from ..physics.patches import gather, merge
from ..physics.probe import power
from .augmentation import Turn
from .base import Generator, Measurement
from .physics_step import ILLUMINATION_FLOOR, STEP_SIZE, Descent, momentum_schedule, phase_slope, unit_of
from .unet import UNet

UNSHUFFLE = 4
WEIGHT_FLOOR = 1e-3
"""Weight of a patch where its position sends no light, relative to its brightest pixel."""
COARSE_PX = 4
"""Side of the blocks that the answer shows beyond the centre of a frame."""
FEATURES = 9

# Shifted so that zero, where the untrained network starts, leaves the guess as it is.
AMPLITUDES: dict[str, Callable[[Tensor], Tensor]] = {
    'softplus': lambda x: functional.softplus(x + math.log(math.e - 1.0)),
    'sigmoid': lambda x: 2.0 * torch.sigmoid(x),
    'relu': lambda x: functional.relu(x + 1.0),
    'swish': lambda x: functional.silu(x + 1.278464542761074),
}
"""Amplitude activations by the name they have in the configuration; each maps 0 to 1."""


class _Seen(NamedTuple):
    """What the positions of a group show to the network; all ``(B, C, H, W)``."""

    guess: Tensor
    together: Tensor
    """Where all patterns of the group want the guess to go, complex."""
    alone: Tensor
    """Where the position's own pattern wants it to go, complex."""
    weight: Tensor
    light: Tensor
    """Photons of the position relative to its brightest pixel."""


class PatchGenerator(Generator):
    """See the module's docstring. The size of a group is free: one set of weights serves every position."""

    default_steps = 1
    most_steps = 1
    is_anchored = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.guess_steps = config.steps
        self.network = UNet(FEATURES, 2, width=config.width, levels=config.levels, unshuffle=UNSHUFFLE)
        self.amplitude = AMPLITUDES[config.amplitude_activation]
        self.whole_frame = config.probe_big

    def window_size(self, asked: int, trained: int) -> int:
        """The groups it was trained on, unless asked for others."""
        return asked or trained

    def unroll(self, measured: Measurement, steps: int | None = None) -> Iterator[Tensor]:
        """Yield one canvas, the merged patches of every group; see :meth:`.generator.Generator.unroll`."""
        del steps
        # No weight of the network has a say in the guess.
        with torch.no_grad():
            guess, direction, weight = self._guess(measured)
        shape = (guess.shape[-2], guess.shape[-1])
        total, weights = torch.zeros_like(guess), torch.zeros_like(weight)
        for frames in measured.batches:
            seen = _look(frames, guess, direction, weight)
            patches = self._patches(seen)
            share = seen.light + WEIGHT_FLOOR
            if not self.whole_frame:
                share = share * _centre(share)
            total = total + merge(patches * share, frames.patch_origins, shape)
            weights = weights + merge(share, frames.patch_origins, shape)
        covered = weights > 0
        yield torch.where(covered, total / torch.where(covered, weights, 1.0), measured.start)

    def _guess(self, measured: Measurement) -> tuple[Tensor, Tensor, Tensor]:
        """Guess, next direction and weight, ``(B, h, w)``."""
        physics = Descent(measured)
        canvas, velocity = measured.start, torch.zeros_like(measured.start)
        for step in range(self.guess_steps):
            velocity = momentum_schedule(step) * velocity + STEP_SIZE * physics.direction(canvas)
            canvas = canvas + velocity
        return canvas, physics.direction(canvas), physics.weight

    def _patches(self, seen: _Seen) -> Tensor:
        """Patches ``(B, C, H, W)`` complex."""
        turn = Turn.random() if self.training else Turn()
        features = _features(*(turn.forth(image) for image in seen)).flatten(0, 1)
        # Bounded, so that a step of the training that goes wrong spoils a patch and not the weights.
        answer = torch.tanh(turn.back(self.network(features)).float())
        answer = answer.reshape(*seen.guess.shape[:2], *answer.shape[1:])
        centre = _centre(seen.light)
        if self.whole_frame:
            answer = torch.where(centre, answer, _coarse(answer))
        factor = torch.polar(self.amplitude(answer[:, :, 0]), math.pi * answer[:, :, 1])
        patches = seen.guess * factor
        return patches if self.whole_frame else torch.where(centre, patches, torch.ones_like(patches))


def _look(frames: Frames, guess: Tensor, direction: Tensor, weight: Tensor) -> _Seen:
    size = (frames.probes.shape[-2], frames.probes.shape[-1])
    with torch.no_grad():
        light = power(frames.probes)
        brightest = light.amax(dim=(-2, -1), keepdim=True)
        alone = frame_descents(guess, frames).direction / (light + ILLUMINATION_FLOOR * brightest)
        cuts = [gather(image, frames.patch_origins, size) for image in (guess, direction, weight)]
        return _Seen(cuts[0], cuts[1], alone, cuts[2], light / brightest)


def _features(guess: Tensor, together: Tensor, alone: Tensor, weight: Tensor, light: Tensor) -> Tensor:
    """What the network is fed, ``(B, C, FEATURES, H, W)``: all relative to the local phase of the guess."""
    back = unit_of(guess).conj()
    slopes = [phase_slope(back.conj(), axis) for axis in (-2, -1)]
    together, alone = together * back, alone * back
    moves = [together.real, together.imag, alone.real, alone.imag]
    return torch.stack([guess.abs() - 1.0, *slopes, *moves, weight, light], dim=2)


def _coarse(answer: Tensor) -> Tensor:
    """``(B, C, 2, H, W)`` in blocks that show their mean, smoothly joined."""
    height, width = answer.shape[-2:]
    blocks = functional.avg_pool2d(answer.flatten(0, 1), COARSE_PX, ceil_mode=True, count_include_pad=False)
    smooth = functional.interpolate(blocks, scale_factor=COARSE_PX, mode='bilinear', align_corners=False)
    return smooth[..., :height, :width].reshape(answer.shape)


def _centre(image: Tensor) -> Tensor:
    """True in the central half of each axis of a frame, ``(H, W)`` bool."""
    height, width = image.shape[-2:]
    centre = torch.zeros((height, width), dtype=torch.bool, device=image.device)
    centre[height // 4 : height - height // 4, width // 4 : width - width // 4] = True
    return centre
