"""The losses of training: every estimate of the network is compared with the patterns or with a reference object."""

from __future__ import annotations

import torch
from torch import Tensor

from ..models.base import Generator, Measurement, ObjectUpdate
from ..physics.forward import PatternBatch, Simulation, amplitude_update, simulate
from ..physics.noise_models import DEVIANCES
from ..physics.probe import illumination
from .batches import TrainingBatch

STEP_DECAY = 0.6
"""Weight of a step's loss relative to the next step's: all steps learn, the last one counts most."""


def discounted_mean(losses: list[Tensor]) -> Tensor:
    """Return the mean of the losses of the steps (scalars), each weighted ``STEP_DECAY`` times the next one."""
    weights = [STEP_DECAY ** (len(losses) - 1 - step) for step in range(len(losses))]
    return torch.stack([weight * loss for weight, loss in zip(weights, losses, strict=True)]).sum() / sum(weights)


class _Physics:
    """The object update of a batch; the simulation that it needed serves the loss as well."""

    def __init__(self, batch: PatternBatch) -> None:
        self._batch = batch
        self._latest: tuple[Tensor, Simulation] | None = None

    def update(self, object_array: Tensor) -> Tensor:
        """Return the object update at ``object_array``, ``(B, h, w)`` complex."""
        update, simulation = amplitude_update(object_array, self._batch)
        self._latest = object_array, simulation
        return update

    def simulate(self, object_array: Tensor) -> Simulation:
        """Simulate the batch, or return the simulation of the latest update if it was made at ``object_array``."""
        if self._latest is not None and self._latest[0] is object_array:
            return self._latest[1]
        return simulate(object_array, self._batch.probes, self._batch.patch_origins)


def pinn_training_loss(generator: Generator, batch: TrainingBatch, likelihood: str) -> Tensor:
    """Compute the self-supervised loss: every estimate is compared with the patterns that it was made from.

    Args:
        generator: the network.
        batch: groups; ``inputs`` and ``scored`` are the same positions.
        likelihood: name in :data:`~ptychopinn_torch_plugin.physics.noise_models.DEVIANCES`.

    Returns:
        Scalar, dimensionless: 1 is the noise limit.
    """
    physics, patterns = _Physics(batch.inputs), batch.inputs
    losses: list[Tensor] = []

    def add_loss(estimate: Tensor) -> None:
        amplitudes = physics.simulate(estimate).amplitudes
        losses.append(DEVIANCES[likelihood](amplitudes, patterns.amplitudes, patterns.good_pixels))

    previous: Tensor | None = None
    for estimate in generator.unroll(_measurement(batch, physics.update)):
        # One step late: by then the network has taken the update at this estimate, which simulates it.
        if previous is not None:
            add_loss(previous)
        previous = estimate
    if previous is not None:
        add_loss(previous)
    return discounted_mean(losses)


def pinn_validation_loss(generator: Generator, batch: TrainingBatch, likelihood: str) -> Tensor:
    """Compute the deviance of held-out patterns, simulated from the object that their neighbours gave.

    Args:
        generator: the network.
        batch: groups; ``inputs`` are the positions that make the object, ``scored`` the held-out ones.
        likelihood: name in :data:`~ptychopinn_torch_plugin.physics.noise_models.DEVIANCES`.

    Returns:
        Scalar, dimensionless, per measured pixel.
    """
    estimate = _estimates(generator, batch)[-1]
    scored = batch.scored
    simulation = simulate(estimate, scored.probes, scored.patch_origins)
    return DEVIANCES[likelihood](simulation.amplitudes, scored.amplitudes, scored.good_pixels)


def supervised_loss(generator: Generator, batch: TrainingBatch) -> Tensor:
    """Compute the real-space loss of every estimate against the reference object; a scalar.

    Args:
        generator: the network.
        batch: groups with a reference.

    Returns:
        Squared error over the power of the reference, weighted by the illumination of the scored positions. The best
        constant complex factor is applied first: no pattern fixes the phase, and the probe takes the scale.
    """
    shape = (batch.reference.shape[-2], batch.reference.shape[-1])
    weight = illumination(batch.scored.probes, batch.scored.patch_origins, shape)
    weight = weight / weight.amax(dim=(-2, -1), keepdim=True)
    return discounted_mean(
        [_relative_error(estimate, batch.reference, weight) for estimate in _estimates(generator, batch)]
    )


def _estimates(generator: Generator, batch: TrainingBatch) -> list[Tensor]:
    return list(generator.unroll(_measurement(batch, _Physics(batch.inputs).update)))


def _measurement(batch: TrainingBatch, update: ObjectUpdate) -> Measurement:
    start = torch.ones_like(batch.reference)
    shape = (start.shape[-2], start.shape[-1])
    photons = illumination(batch.inputs.probes, batch.inputs.patch_origins, shape)
    return Measurement(update, (batch.inputs,), start, photons)


def _relative_error(estimate: Tensor, reference: Tensor, weight: Tensor) -> Tensor:
    def product(a: Tensor, b: Tensor) -> Tensor:
        return (weight * a.conj() * b).sum(dim=(-2, -1), keepdim=True)

    factor = product(estimate, reference) / product(estimate, estimate).real.clamp_min(1e-12)
    difference = factor * estimate - reference
    error = product(difference, difference).real / product(reference, reference).real.clamp_min(1e-12)
    return error.mean()
