"""The epoch in torch, for every device: the reference that other kernels are tested against."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..derivatives import intensity_ratio, position_step, probe_spectra
from ..forward import (
    EXPECTED_EPS,
    PatternBatch,
    amplitude_update,
    exit_wave_update,
    forward_adjoint,
    object_update,
    patch_updates,
    power,
    simulate,
)
from ..local_phase import network_correction, network_input
from ..noise_models import DEVIANCES, deviance_slope, total_deviance, update_factor
from ..patches import accumulate_patches, extract_patches
from ..preconditioner import OPAQUE, amplify_low_frequencies, precondition_low_frequencies
from ..probe import illumination, shift_probe
from ..propagation import backpropagate, propagate, shift_ramp
from ..total_variation import proximal_point
from .sums import AmplitudeScales, Epoch, Fit, Gradients, Kernels, Patterns, ResidualSums


def add_gradients(epoch: Epoch, batches: Iterable[Patterns], total: Gradients) -> None:
    """Add the gradients of all patterns of ``batches`` to ``total``."""
    for patterns in batches:
        _add(epoch, patterns, total)


def add_object_update(objects: Tensor, batch: PatternBatch, total: Tensor) -> None:
    """Add the object update of ``batch`` at ``objects`` to ``total``, both ``(B, h, w)`` complex."""
    total += amplitude_update(objects, batch)[0]


def shift_probes(probe: Tensor, phase: Tensor, shifts: Tensor, intensities: Tensor) -> Tensor:
    """Return the probe with ``phase`` at ``shifts`` ``(C, 2)`` with ``intensities`` ``(C,)``: ``(C, M, H, W)``."""
    return shift_probe(probe, _ramps(probe, shifts, intensities), phase)


def add_illumination(probes: Tensor, patch_origins: Tensor, total: Tensor) -> None:
    """Add the photons of ``probes`` ``(B, C, M, H, W)`` to ``total`` ``(B, h, w)`` real."""
    total += illumination(probes, patch_origins, (total.shape[-2], total.shape[-1]))


def _ramps(probe: Tensor, shifts: Tensor, intensities: Tensor) -> Tensor:
    return shift_ramp(shifts, (probe.shape[-2], probe.shape[-1]), intensities.sqrt()).to(probe.dtype)


def _add(epoch: Epoch, patterns: Patterns, total: Gradients) -> None:
    object_shape = (epoch.object_array.shape[0], epoch.object_array.shape[1])
    probes = patterns.probes
    if probes is None:
        probes = shift_probes(epoch.probe, epoch.phase, patterns.shifts, patterns.intensities)
    batch = PatternBatch(patterns.amplitudes[None], probes[None], patterns.patch_origins[None], epoch.good_pixels)
    simulation = simulate(epoch.object_array[None], batch.probes, batch.patch_origins)
    chi = exit_wave_update(simulation, batch, epoch.likelihood)
    total.object_update += object_update(chi, batch, object_shape)[0]
    if epoch.needs_illumination:
        add_illumination(batch.probes, batch.patch_origins, total.illumination[None])
    if epoch.refined.probe or epoch.refined.positions:
        patches = simulation.object_patches[0]
        spectra = probe_spectra(
            chi[0], patches, _ramps(epoch.probe, patterns.shifts, patterns.intensities), epoch.phase
        )
        transmittance = patches.real.square() + patches.imag.square()
        total.probe_spectrum += spectra.sum(dim=0)
        total.transmittance += torch.tensordot(patterns.intensities, transmittance, dims=1)
        if epoch.refined.positions:
            step = position_step(spectra, transmittance, patterns.intensities, epoch.probe)
            total.position_steps[patterns.numbers] = step
    if epoch.refined.intensities:
        ratio = intensity_ratio(patterns.amplitudes, simulation.expected[0], epoch.good_pixels)
        total.intensity_ratios[patterns.numbers] = ratio
    total.deviance += total_deviance(simulation.expected[0], patterns.amplitudes, epoch.good_pixels, epoch.likelihood)


def precondition(update: Tensor, weight: Tensor, object_array: Tensor, gain: Tensor) -> Tensor:
    """Return ``L(U w)`` of the update ``U``, the real weight ``w`` and the object, all ``(B, h, w)``."""
    return precondition_low_frequencies(update * weight, object_array, gain)


def fit(object_array: Tensor, batch: PatternBatch, likelihood: str, needs_update: bool) -> Fit:
    """Compare objects with a batch; see :class:`.sums.Kernels`."""
    simulation = simulate(object_array, batch.probes, batch.patch_origins)
    update = None
    if needs_update:
        shape = (object_array.shape[-2], object_array.shape[-1])
        update = object_update(exit_wave_update(simulation, batch), batch, shape)
    deviance = DEVIANCES[likelihood](simulation.amplitudes, batch.amplitudes, batch.good_pixels)
    return Fit(update, deviance, (simulation.waves,))


def fit_gradient(
    fit_waves: tuple[Tensor, ...],
    batch: PatternBatch,
    likelihood: str,
    of_update: Tensor | None,
    of_deviance: Tensor | None,
    shape: tuple[int, int],
) -> Tensor:
    """Compute the derivative of :func:`fit` with respect to the objects; see :class:`.sums.Kernels`.

    With the waves ``v`` of ``of_update`` and ``s = Re sum_m v_m* psi_m`` it is
    ``A^H(q v_m + 2 (q' s + of_deviance D') psi_m)``, where ``A`` maps an object to its waves.
    """
    waves, good = fit_waves[0], batch.good_pixels
    expected = power(waves) + EXPECTED_EPS
    slope = torch.zeros_like(expected)
    if of_deviance is not None:
        pixels = good.sum() * (expected.numel() // good.numel())
        slope += (2.0 * of_deviance / pixels) * deviance_slope(expected, batch.amplitudes, likelihood)
    if of_update is None:
        return forward_adjoint(waves * (slope * good)[:, :, None], batch.probes, batch.patch_origins, shape)
    size = (waves.shape[-2], waves.shape[-1])
    towards = propagate(batch.probes * extract_patches(of_update, batch.patch_origins, size)[:, :, None])
    cross = (towards.real * waves.real + towards.imag * waves.imag).sum(dim=2)
    slope -= batch.amplitudes * expected.pow(-1.5) * cross
    factor = update_factor(expected, batch.amplitudes, 'amplitude') * good
    both = towards * factor[:, :, None] + waves * (slope * good)[:, :, None]
    return forward_adjoint(both, batch.probes, batch.patch_origins, shape)


def precondition_gradient(
    gradient: Tensor, update: Tensor, weight: Tensor, object_array: Tensor, gain: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the derivatives of :func:`precondition` with respect to the update and the object.

    The equations are those of :func:`.object_loops.precondition_gradient`.
    """
    direction = update * weight
    modulus = object_array.real.square() + object_array.imag.square()
    divisor = modulus.clamp_min(OPAQUE)
    phase = (object_array.conj() * direction).imag / divisor
    low = amplify_low_frequencies(phase, gain)
    share = amplify_low_frequencies((object_array.conj() * gradient).imag, gain) / divisor
    decay = 2.0 * phase * share * (modulus > OPAQUE)
    of_object = -1j * (low * gradient + share * direction) - decay * object_array
    return weight * (gradient + 1j * object_array * share), of_object


def add_residuals(object_array: Tensor, batch: PatternBatch, scales: AmplitudeScales, sums: ResidualSums) -> None:
    """Add the residuals of a batch (``B = 1``) with the object ``(h, w)`` complex to ``sums``."""
    simulation = simulate(object_array[None], batch.probes, batch.patch_origins)
    good, noise = batch.good_pixels, scales.noise
    measured, model, expected = batch.amplitudes[0], simulation.amplitudes[0], simulation.expected[0]
    waves, probes = simulation.waves[0], batch.probes[0]
    difference = (measured - scales.best * model).abs() * good
    sums.detector += torch.stack([difference.sum(dim=0), measured.sum(dim=0)])
    root = scales.photons * model
    residual = (measured - noise.mean(root)) * good
    variance = noise.variance(root) * good
    totals = [noise.deviation(root) * good, residual.square(), variance]
    sums.totals += torch.stack([values.sum(dtype=sums.totals.dtype) for values in totals])

    chi = backpropagate(waves * (residual / expected.sqrt())[:, None])
    gradient = patch_updates(chi[None], batch.probes)[0]
    share = (waves.real.square() + waves.imag.square()) / expected[:, None]
    modes = probes.real.square() + probes.imag.square()
    light = modes.sum(dim=1)
    patches = [
        light,
        light.square(),
        light * difference.sum(dim=(-2, -1), keepdim=True),
        light * measured.sum(dim=(-2, -1), keepdim=True),
        gradient.real.square() + gradient.imag.square(),
        (modes * (share * variance[:, None]).mean(dim=(-2, -1), keepdim=True)).sum(dim=1),
        (modes * (share * good).mean(dim=(-2, -1), keepdim=True)).sum(dim=1) * scales.photons**2,
    ]
    shape = (object_array.shape[0], object_array.shape[1])
    origins = batch.patch_origins.expand(len(patches), -1, -1)
    sums.maps += accumulate_patches(torch.stack(patches), origins, shape)


REFERENCE = Kernels(
    description='torch',
    add_gradients=add_gradients,
    shift_probes=shift_probes,
    add_object_update=add_object_update,
    add_illumination=add_illumination,
    precondition=precondition,
    proximal_point=proximal_point,
    fit=fit,
    fit_gradient=fit_gradient,
    precondition_gradient=precondition_gradient,
    network_input=network_input,
    network_correction=network_correction,
    add_residuals=add_residuals,
    batch_bytes=2**20,
)
