"""The losses of training: every estimate of the network is compared with the patterns or with a reference object."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ..models.base import Generator, Measurement
from ..physics.forward import simulate
from ..physics.kernels.differentiable import fit, precondition
from ..physics.kernels.reference import REFERENCE
from ..physics.kernels.sums import Kernels
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
    """The object update of a batch; the simulation that it needs serves the loss as well."""

    def __init__(self, batch: TrainingBatch, kernels: Kernels, likelihood: str) -> None:
        self._batch = batch
        self._kernels = kernels
        self._likelihood = likelihood
        self._latest: tuple[Tensor, Tensor] | None = None

    def update(self, object_array: Tensor) -> Tensor:
        """Return the object update at ``object_array``, ``(B, h, w)`` complex."""
        update, deviance = self._fit(object_array, needs_update=True)
        self._latest = object_array, deviance
        return update

    def deviance(self, object_array: Tensor) -> Tensor:
        """Return the mean deviance, or that of the latest update if it was computed at ``object_array``; a scalar."""
        if self._latest is not None and self._latest[0] is object_array:
            return self._latest[1]
        return self._fit(object_array, needs_update=False)[1]

    def _fit(self, object_array: Tensor, *, needs_update: bool) -> tuple[Tensor, Tensor]:
        return fit(self._kernels, object_array, self._batch.inputs, self._likelihood, needs_update=needs_update)

    @property
    def measurement(self) -> Measurement:
        """What a generator receives about the batch."""
        inputs = self._batch.inputs
        start = torch.ones_like(self._batch.reference)
        photons = torch.zeros_like(start.real)
        self._kernels.add_illumination(inputs.probes, inputs.patch_origins, photons)
        # The kernels of the network's input and correction have no derivative; those of the reference have.
        kernels = REFERENCE if torch.is_grad_enabled() else self._kernels
        return Measurement(
            self.update,
            (inputs,),
            start,
            photons,
            partial(precondition, self._kernels),
            kernels.network_input,
            kernels.network_correction,
        )


def pinn_training_loss(generator: Generator, batch: TrainingBatch, likelihood: str, kernels: Kernels) -> Tensor:
    """Compute the self-supervised loss: every estimate is compared with the patterns that it was made from.

    Args:
        generator: the network.
        batch: groups; ``inputs`` and ``scored`` are the same positions.
        likelihood: name in :data:`~ptychopinn_torch_plugin.physics.noise_models.DEVIANCES`.
        kernels: the computation of the patterns.

    Returns:
        Scalar, dimensionless: 1 is the noise limit.
    """
    physics = _Physics(batch, kernels, likelihood)
    losses: list[Tensor] = []

    previous: Tensor | None = None
    for estimate in generator.unroll(physics.measurement):
        # One step late: by then the network has taken the update at this estimate, which simulates it.
        if previous is not None:
            losses.append(physics.deviance(previous))
        previous = estimate
    if previous is not None:
        losses.append(physics.deviance(previous))
    return discounted_mean(losses)


def pinn_validation_loss(generator: Generator, batch: TrainingBatch, likelihood: str, kernels: Kernels) -> Tensor:
    """Compute the deviance of held-out patterns, simulated from the object that their neighbours gave.

    Args:
        generator: the network.
        batch: groups; ``inputs`` are the positions that make the object, ``scored`` the held-out ones.
        likelihood: name in :data:`~ptychopinn_torch_plugin.physics.noise_models.DEVIANCES`.
        kernels: the computation of the patterns.

    Returns:
        Scalar, dimensionless, per measured pixel.
    """
    estimate = _estimates(generator, batch, kernels)[-1]
    scored = batch.scored
    simulation = simulate(estimate, scored.probes, scored.patch_origins)
    return DEVIANCES[likelihood](simulation.amplitudes, scored.amplitudes, scored.good_pixels)


def supervised_loss(generator: Generator, batch: TrainingBatch, kernels: Kernels) -> Tensor:
    """Compute the real-space loss of every estimate against the reference object; a scalar.

    Args:
        generator: the network.
        batch: groups with a reference.
        kernels: the computation of the patterns.

    Returns:
        Squared error over the power of the reference, weighted by the illumination of the scored positions. The best
        constant complex factor is applied first: no pattern fixes the phase, and the probe takes the scale.
    """
    shape = (batch.reference.shape[-2], batch.reference.shape[-1])
    weight = illumination(batch.scored.probes, batch.scored.patch_origins, shape)
    weight = weight / weight.amax(dim=(-2, -1), keepdim=True)
    return discounted_mean(
        [_relative_error(estimate, batch.reference, weight) for estimate in _estimates(generator, batch, kernels)]
    )


def _estimates(generator: Generator, batch: TrainingBatch, kernels: Kernels) -> list[Tensor]:
    return list(generator.unroll(_Physics(batch, kernels, 'amplitude').measurement))


def _relative_error(estimate: Tensor, reference: Tensor, weight: Tensor) -> Tensor:
    def product(a: Tensor, b: Tensor) -> Tensor:
        return (weight * a.conj() * b).sum(dim=(-2, -1), keepdim=True)

    factor = product(estimate, reference) / product(estimate, estimate).real.clamp_min(1e-12)
    difference = factor * estimate - reference
    error = product(difference, difference).real / product(reference, reference).real.clamp_min(1e-12)
    return error.mean()
