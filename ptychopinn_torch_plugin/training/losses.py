"""What training minimises: deep supervision of the unrolled steps, by patterns or by a reference object."""

from __future__ import annotations

import torch
from torch import Tensor

from ..models.base import Descend, Generator, Measurement
from ..physics.forward import AMPLITUDE_EPS, Frames, amplitude_descent, simulate
from ..physics.noise_models import DEVIANCES
from ..physics.probe import illumination
from .batches import Batch

STEP_DECAY = 0.6
"""Weight of a step's loss relative to the next step's: all steps learn, the last one counts most."""


def discounted_mean(losses: list[Tensor]) -> Tensor:
    """Mean of the losses of the steps (scalars), first step first, each weighted ``STEP_DECAY`` times the next."""
    weights = [STEP_DECAY ** (len(losses) - 1 - step) for step in range(len(losses))]
    return torch.stack([weight * loss for weight, loss in zip(weights, losses, strict=True)]).sum() / sum(weights)


def pinn_training_loss(generator: Generator, batch: Batch, likelihood: str) -> Tensor:
    """Self-supervised loss: every step's canvas is judged by the patterns it was made from.

    Where the physics of a further step simulates a canvas anyway, it is not simulated again for the loss.

    Args:
        generator: the network.
        batch: groups; ``inputs`` and ``scored`` are the same positions.
        likelihood: name in :data:`~ptychopinn_torch_plugin.physics.noise_models.DEVIANCES`.

    Returns:
        Scalar, dimensionless: 1 is the noise limit.
    """
    frames = batch.inputs
    judge = DEVIANCES[likelihood]
    simulated: list[tuple[Tensor, Tensor]] = []

    def descend(canvas: Tensor) -> Tensor:
        descent = amplitude_descent(canvas, frames)
        simulated.append((canvas, descent.amplitudes))
        return descent.direction

    canvases = _unroll(generator, descend, batch)
    known = {id(canvas): amplitudes for canvas, amplitudes in simulated}
    amplitudes = [
        known[id(canvas)] if id(canvas) in known else _model_amplitudes(canvas, frames) for canvas in canvases
    ]
    return discounted_mean([judge(each, frames.amplitudes, frames.good_pixels) for each in amplitudes])


def pinn_validation_loss(generator: Generator, batch: Batch, likelihood: str) -> Tensor:
    """Deviance of held-out patterns, predicted from the canvas that their neighbours gave.

    Args:
        generator: the network.
        batch: groups; ``inputs`` are the positions that make the canvas, ``scored`` the held-out ones.
        likelihood: name in :data:`~ptychopinn_torch_plugin.physics.noise_models.DEVIANCES`.

    Returns:
        Scalar, dimensionless, per measured pixel.
    """
    canvas = _unroll(generator, lambda canvas: amplitude_descent(canvas, batch.inputs).direction, batch)[-1]
    judged = batch.scored
    return DEVIANCES[likelihood](_model_amplitudes(canvas, judged), judged.amplitudes, judged.good_pixels)


def supervised_loss(generator: Generator, batch: Batch) -> Tensor:
    """Real-space loss of every step's canvas against the reference object; a scalar.

    Args:
        generator: the network.
        batch: groups with a reference.

    Returns:
        Squared error over the power of the reference, weighted by the illumination of the judged positions. A
        constant complex factor is fitted away: no pattern fixes the phase, and the probe takes the scale.
    """
    frames = batch.inputs
    shape = (batch.reference.shape[-2], batch.reference.shape[-1])
    weight = illumination(batch.scored.probes, batch.scored.patch_origins, shape)
    weight = weight / weight.amax(dim=(-2, -1), keepdim=True)
    losses = [
        _relative_error(canvas, batch.reference, weight)
        for canvas in _unroll(generator, lambda canvas: amplitude_descent(canvas, frames).direction, batch)
    ]
    return discounted_mean(losses)


def _unroll(generator: Generator, descend: Descend, batch: Batch) -> list[Tensor]:
    start = torch.ones_like(batch.reference)
    shape = (start.shape[-2], start.shape[-1])
    photons = illumination(batch.inputs.probes, batch.inputs.patch_origins, shape)
    return list(generator.unroll(Measurement(descend, (batch.inputs,), start, photons)))


def _model_amplitudes(canvas: Tensor, frames: Frames) -> Tensor:
    return torch.sqrt(simulate(canvas, frames.probes, frames.patch_origins) + AMPLITUDE_EPS)


def _relative_error(canvas: Tensor, reference: Tensor, weight: Tensor) -> Tensor:
    def product(a: Tensor, b: Tensor) -> Tensor:
        return (weight * a.conj() * b).sum(dim=(-2, -1), keepdim=True)

    factor = product(canvas, reference) / product(canvas, canvas).real.clamp_min(1e-12)
    difference = factor * canvas - reference
    error = product(difference, difference).real / product(reference, reference).real.clamp_min(1e-12)
    return error.mean()
