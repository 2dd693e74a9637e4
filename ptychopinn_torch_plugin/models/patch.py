"""The patch network: one pass from a group of patterns to the object patches of its positions.

The form of PtychoPINN (O. Hoidn et al., Sci Rep 13, 22789, 2023), with one difference: the input of the network is not
the patterns, from which it would have to learn a Fourier inversion, but the initial estimate that a few preconditioned
steps (:mod:`.physics_step`) make of them in real space. For every position ``j`` of a group, with the initial estimate
``G``, its update ``dG`` by all patterns of the group and ``dG_j`` by the position's own pattern, the network ``N``
returns an amplitude ``a_j`` and a phase ``p_j`` that multiply the estimate::

    O_j = a_j exp(i p_j) R_j G,   (a_j, p_j) = N(R_j G, R_j dG, dG_j, illumination)
    O   = sum_j R_j^T(w_j O_j) / sum_j R_j^T w_j

The weighted mean over the group is PtychoPINN's constraint map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ..config import ModelConfig
from ..physics.forward import PatternBatch, exit_wave_update, patch_updates, power, simulate
from ..physics.local_phase import local_phase, phase_slope
from ..physics.patches import accumulate_patches, extract_patches
from .augmentation import Augmentation
from .base import Generator, Measurement
from .physics_step import OBJECT_STEP, PreconditionedUpdate, momentum, regularise
from .unet import UNet

UNSHUFFLE = 4
WEIGHT_FLOOR = 1e-3
"""Weight of a patch where its probe has no power, relative to its brightest pixel."""
COARSE_PX = 4
"""Side of the blocks, pixels, in which the output is constant outside the centre of a pattern."""
FEATURES = 9

# Shifted so that zero, the output of the untrained network, leaves the initial estimate unchanged.
AMPLITUDES: dict[str, Callable[[Tensor], Tensor]] = {
    'softplus': lambda x: functional.softplus(x + math.log(math.e - 1.0)),
    'sigmoid': lambda x: 2.0 * torch.sigmoid(x),
    'relu': lambda x: functional.relu(x + 1.0),
    'swish': lambda x: functional.silu(x + 1.278464542761074),
}
"""Amplitude activations by the name they have in the configuration; each maps 0 to 1."""


class _Inputs(NamedTuple):
    """Inputs of the network at the positions of a group; all ``(B, C, H, W)``."""

    estimate: Tensor
    group_update: Tensor
    """Update of the estimate by all patterns of the group, complex."""
    own_update: Tensor
    """Update of the estimate by the position's own pattern, complex."""
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
        self.physics_steps = config.steps
        self.network = UNet(FEATURES, 2, width=config.width, levels=config.levels, unshuffle=UNSHUFFLE)
        self.amplitude = AMPLITUDES[config.amplitude_activation]
        self.whole_pattern = config.probe_big

    def window_size(self, requested: int, trained: int) -> int:
        """Return ``requested``, or the group size of the training."""
        return requested or trained

    def unroll(self, measured: Measurement, steps: int | None = None) -> Iterator[Tensor]:
        """Yield one object, the weighted mean of all patches of a group; see :meth:`.base.Generator.unroll`."""
        del steps
        # The initial estimate does not depend on the weights of the network.
        with torch.no_grad():
            estimate, update, weight = self._initial_estimate(measured)
        shape = (estimate.shape[-2], estimate.shape[-1])
        total, weights = torch.zeros_like(estimate), torch.zeros_like(weight)
        for batch in measured.batches:
            inputs = _inputs_of(batch, estimate, update, weight)
            patches = self._patches(inputs)
            share = inputs.light + WEIGHT_FLOOR
            if not self.whole_pattern:
                share = share * _centre(share)
            total = total + accumulate_patches(patches * share, batch.patch_origins, shape)
            weights = weights + accumulate_patches(share, batch.patch_origins, shape)
        covered = weights > 0
        yield torch.where(covered, total / torch.where(covered, weights, 1.0), measured.start)

    def _initial_estimate(self, measured: Measurement) -> tuple[Tensor, Tensor, Tensor]:
        """Return the estimate, its next preconditioned update and the relative illumination, ``(B, h, w)``."""
        update = PreconditionedUpdate(measured)
        estimate, velocity = measured.start, torch.zeros_like(measured.start)
        for step in range(self.physics_steps):
            velocity = momentum(step) * velocity + OBJECT_STEP * update(estimate)
            estimate = estimate + velocity
        return estimate, update(estimate), update.weight

    def _patches(self, inputs: _Inputs) -> Tensor:
        """Return the patches, ``(B, C, H, W)`` complex."""
        augmentation = Augmentation.random() if self.training else Augmentation()
        features = _features(_Inputs(*(augmentation.apply(image) for image in inputs))).flatten(0, 1)
        # Bounded, so that one bad step of the training changes a patch by a bounded amount.
        answer = torch.tanh(augmentation.invert(self.network(features)).float())
        answer = answer.reshape(*inputs.estimate.shape[:2], *answer.shape[1:])
        centre = _centre(inputs.light)
        if self.whole_pattern:
            answer = torch.where(centre, answer, _coarse(answer))
        factor = torch.polar(self.amplitude(answer[:, :, 0]), math.pi * answer[:, :, 1])
        patches = inputs.estimate * factor
        return patches if self.whole_pattern else torch.where(centre, patches, torch.ones_like(patches))


def _inputs_of(batch: PatternBatch, estimate: Tensor, update: Tensor, weight: Tensor) -> _Inputs:
    size = (batch.probes.shape[-2], batch.probes.shape[-1])
    with torch.no_grad():
        light = power(batch.probes)
        chi = exit_wave_update(simulate(estimate, batch.probes, batch.patch_origins), batch)
        own = patch_updates(chi, batch.probes) / regularise(light)
        at_positions = [extract_patches(image, batch.patch_origins, size) for image in (estimate, update, weight)]
        return _Inputs(at_positions[0], at_positions[1], own, at_positions[2], light / light.amax((-2, -1), True))


def _features(inputs: _Inputs) -> Tensor:
    """Return the input channels, ``(B, C, FEATURES, H, W)``: all relative to the local phase of the estimate."""
    unit = local_phase(inputs.estimate)
    slopes = [phase_slope(unit, axis) for axis in (-2, -1)]
    group, own = inputs.group_update * unit.conj(), inputs.own_update * unit.conj()
    updates = [group.real, group.imag, own.real, own.imag]
    return torch.stack([inputs.estimate.abs() - 1.0, *slopes, *updates, inputs.weight, inputs.light], dim=2)


def _coarse(answer: Tensor) -> Tensor:
    """Replace ``(B, C, 2, H, W)`` by the means of blocks, interpolated bilinearly."""
    height, width = answer.shape[-2:]
    blocks = functional.avg_pool2d(answer.flatten(0, 1), COARSE_PX, ceil_mode=True, count_include_pad=False)
    smooth = functional.interpolate(blocks, scale_factor=COARSE_PX, mode='bilinear', align_corners=False)
    return smooth[..., :height, :width].reshape(answer.shape)


def _centre(image: Tensor) -> Tensor:
    """Return True in the central half of each axis of a patch, ``(H, W)`` bool."""
    height, width = image.shape[-2:]
    centre = torch.zeros((height, width), dtype=torch.bool, device=image.device)
    centre[height // 4 : height - height // 4, width // 4 : width - width // 4] = True
    return centre
