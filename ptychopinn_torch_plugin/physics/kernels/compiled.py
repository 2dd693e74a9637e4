"""The epoch on a CPU: numba's loops around torch's transforms, batch by batch within the cache.

A batch passes through these steps (:mod:`.loops` has their equations)::

    probes:  F(P_m) g_j -> F^-1 -> Q          unless they are kept
    waves:   P_jm O_j -> F -> q_j -> F^-1     deviance, expected photons
    object:  P_jm* chi_jm added
    probe:   Q* O_j* chi_jm -> F -> g_j*      probe spectrum and position gradients, where refined

The transforms are those of torch, without scaling passes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..derivatives import gauss_newton_step, slope_products
from ..forward import EXPECTED_EPS, PatternBatch
from ..local_phase import IMAGES
from ..local_phase import OPAQUE as OPAQUE_PHASE
from ..noise_models import POISSON_FLOOR
from ..photon_noise import OFFSET_STEP, STEP, PhotonNoise
from ..preconditioner import OPAQUE, amplify_low_frequencies
from ..total_variation import dual_step_sizes
from . import loops, object_loops, residual_loops
from .sums import (
    AmplitudeScales,
    Epoch,
    Fit,
    Gradients,
    Kernels,
    Patterns,
    RefinedQuantities,
    ResidualSums,
)

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]

WORK_PIXELS = 1024
"""Pixels whose factors are computed at a time: they stay in the fastest cache."""
BATCH_BYTES = 2**20
LIKELIHOODS = {'amplitude': loops.amplitude_factors, 'poisson': loops.poisson_factors}
"""Loops that compute the factors of the exit-wave updates, by the likelihood."""
FITS = {'amplitude': 0, 'poisson': 1, 'mae': 2}
"""Numbers of the likelihoods in :func:`.loops.fit_waves`."""
FLOORS = (EXPECTED_EPS, POISSON_FLOOR)
MOST_LOOPS = 32
"""More than there are functions to compile."""


def add_gradients(epoch: Epoch, batches: Iterable[Patterns], total: Gradients) -> None:
    """Add the gradients of all patterns of ``batches`` to ``total``."""
    _EpochSums(epoch, total).add(batches)


def shift_probes(probe: Tensor, phase: Tensor, shifts: Tensor, intensities: Tensor) -> Tensor:
    """Return the probe with ``phase`` at ``shifts`` ``(C, 2)`` with ``intensities`` ``(C,)``: ``(C, M, H, W)``."""
    probes = _ShiftedProbes(probe, phase)
    return probes.at(probes.ramps(shifts, intensities))


def add_illumination(probes: Tensor, patch_origins: Tensor, total: Tensor) -> None:
    """Add the photons of ``probes`` ``(B, C, M, H, W)`` to ``total`` ``(B, h, w)`` real."""
    for group, origins, target in zip(probes, patch_origins, total, strict=True):
        loops.add_power(group.numpy(), origins.numpy(), target.numpy())


def add_object_update(objects: Tensor, batch: PatternBatch, total: Tensor) -> None:
    """Add the object update of ``batch`` at ``objects`` to ``total``, both ``(B, h, w)`` complex."""
    modes, height, width = batch.probes.shape[2:]
    count = max(1, BATCH_BYTES // (8 * modes * height * width))
    factors = _Factors(batch.good_pixels, 'amplitude')
    for number, patterns in enumerate(batch.amplitudes):
        object_array, target = _as_numpy(objects[number]), total[number].numpy()
        for first in range(0, len(patterns), count):
            chosen = slice(first, first + count)
            probes, origins = batch.probes[number, chosen], batch.patch_origins[number, chosen].numpy()
            chi, _ = _exit_wave_updates(object_array, probes, origins, patterns[chosen], factors)
            loops.add_object_update(chi.numpy(), probes.numpy(), origins, target)


def fit(object_array: Tensor, batch: PatternBatch, likelihood: str, needs_update: bool) -> Fit:
    """Compare objects with a batch; see :class:`.sums.Kernels`."""
    objects, good = _as_numpy(object_array), batch.good_pixels.contiguous().numpy().reshape(-1)
    update = torch.zeros_like(object_array, memory_format=torch.contiguous_format) if needs_update else None
    work, total = np.empty(min(WORK_PIXELS, good.size), good.dtype), 0.0
    kept = []
    for number, probes, amplitudes, origins in _parts(batch):
        waves = torch.empty_like(probes)
        loops.exit_waves(objects[number], probes.numpy(), origins, waves.numpy())
        waves = torch.fft.fft2(waves)
        kept.append(waves)
        updates = torch.empty_like(waves) if update is not None else waves[:0]
        costs = np.empty(len(waves))
        flat, flat_updates = _pixels_on_one_axis(waves), _pixels_on_one_axis(updates)
        loops.fit_waves(flat, amplitudes, good, FITS[likelihood], FLOORS, work, flat_updates, costs)
        total += float(costs.sum())
        if update is not None:
            chi = torch.fft.ifft2(updates, norm='forward')
            loops.add_object_update(chi.numpy(), probes.numpy(), origins, update[number].numpy())
    deviance = total / _measured_pixels(batch)
    return Fit(update, object_array.real.new_tensor(deviance), tuple(kept))


def fit_gradient(
    fit_waves: tuple[Tensor, ...],
    batch: PatternBatch,
    likelihood: str,
    of_update: Tensor | None,
    of_deviance: Tensor | None,
    shape: tuple[int, int],
) -> Tensor:
    """Compute the derivative of :func:`fit` with respect to the objects; see :class:`.sums.Kernels`."""
    good = batch.good_pixels.contiguous().numpy().reshape(-1)
    weight = 0.0 if of_deviance is None else float(of_deviance) / _measured_pixels(batch)
    work = np.empty((2, min(WORK_PIXELS, good.size)), good.dtype)
    directions = None if of_update is None else _as_numpy(of_update)
    gradient = batch.probes.new_zeros((len(batch.probes), *shape))
    for (number, probes, amplitudes, origins), waves in zip(_parts(batch), fit_waves, strict=True):
        towards = torch.zeros_like(waves)
        if directions is not None:
            loops.exit_waves(directions[number], probes.numpy(), origins, towards.numpy())
            towards = torch.fft.fft2(towards)
        flat, flat_towards = _pixels_on_one_axis(waves), _pixels_on_one_axis(towards)
        loops.fit_gradient_waves(flat, flat_towards, amplitudes, good, FITS[likelihood], FLOORS, weight, work)
        back = torch.fft.ifft2(towards, norm='forward')
        loops.add_object_update(back.numpy(), probes.numpy(), origins, gradient[number].numpy())
    return gradient


def _parts(batch: PatternBatch) -> Iterator[tuple[int, Tensor, Array, Array]]:
    """Yield number of the object, probes ``(C, M, H, W)``, amplitudes ``(C, N)`` and origins of parts of a batch."""
    modes, height, width = batch.probes.shape[2:]
    count = max(1, BATCH_BYTES // (8 * modes * height * width))
    for number, patterns in enumerate(batch.amplitudes):
        amplitudes = patterns.contiguous().numpy().reshape(len(patterns), -1)
        for first in range(0, len(patterns), count):
            chosen = slice(first, first + count)
            origins = batch.patch_origins[number, chosen].numpy()
            yield number, batch.probes[number, chosen].contiguous(), amplitudes[chosen], origins


def _measured_pixels(batch: PatternBatch) -> float:
    return float(batch.good_pixels.sum()) * (batch.amplitudes.numel() // batch.good_pixels.numel())


def _pixels_on_one_axis(waves: Tensor) -> Array:
    array: Array = waves.numpy()
    return array.reshape(*array.shape[:2], -1) if len(array) else array.reshape(0, array.shape[1], 0)


class _Factors:
    """The pixels of the detector, and the sums of the last batch over them."""

    def __init__(self, good_pixels: Tensor, likelihood: str) -> None:
        self._good = good_pixels.contiguous().numpy().reshape(-1)
        self._loop = LIKELIHOODS[likelihood]
        self._work = np.empty(min(WORK_PIXELS, self._good.size), dtype=self._good.dtype)
        self._sums = np.empty((0, 3))

    def multiply(self, waves: Tensor, amplitudes: Tensor) -> Array:
        """Multiply the factors onto ``waves`` ``(C, M, H, W)``; return deviance and photons, ``(C, 3)``."""
        count, modes = waves.shape[:2]
        if len(self._sums) < count:
            self._sums = np.empty((count, 3))
        sums, pixels = self._sums[:count], self._good.size
        flat = waves.numpy().reshape(count, modes, pixels)
        measured = amplitudes.numpy().reshape(count, pixels)
        self._loop(flat, measured, self._good, EXPECTED_EPS, POISSON_FLOOR, self._work, sums)
        return sums


class _ShiftedProbes:
    """The probe of an epoch at shifted positions, and space for the ramps of a batch."""

    def __init__(self, probe: Tensor, phase: Tensor) -> None:
        self.phase = _as_numpy(phase)
        self.spectrum = torch.fft.fft2(probe, norm='forward')
        """``F(P_m) / N``, ``(M, H, W)`` complex."""
        self._ramps = [np.empty((0, side), self.phase.dtype) for side in self.phase.shape]

    def ramps(self, shifts: Tensor, intensities: Tensor) -> tuple[Array, Array]:
        """Return the two factors of the Fourier ramps, ``(C, H)`` and ``(C, W)`` complex; valid until the next call."""
        count = len(shifts)
        if len(self._ramps[0]) < count:
            self._ramps = [np.empty((count, side), self.phase.dtype) for side in self.phase.shape]
        along_y, along_x = (ramp[:count] for ramp in self._ramps)
        loops.fill_ramps(shifts.numpy(), intensities.numpy(), along_y, along_x)
        return along_y, along_x

    def at(self, ramps: tuple[Array, Array]) -> Tensor:
        """Return the probes at the positions of ``ramps``, ``(C, M, H, W)`` complex."""
        spectra = self.spectrum.new_empty((len(ramps[0]), *self.spectrum.shape))
        loops.ramp_spectra(self.spectrum.numpy(), *ramps, spectra.numpy())
        probes: Tensor = torch.fft.ifft2(spectra, norm='forward')
        loops.multiply_phase(probes.numpy(), self.phase)
        return probes


class _EpochSums:
    """The sums of one epoch over the patterns of one thread."""

    def __init__(self, epoch: Epoch, total: Gradients) -> None:
        self._epoch = epoch
        self._total = total
        self._object = _as_numpy(epoch.object_array)
        self._factors = _Factors(epoch.good_pixels, epoch.likelihood)
        self._probes = _ShiftedProbes(epoch.probe, epoch.phase)
        self._of_probe = epoch.refined.probe or epoch.refined.positions
        if self._of_probe:
            self._products = _as_numpy(slope_products(epoch.probe))
            self._frequencies = _angular_frequencies(self._products[0])
        real, count = total.position_steps.numpy().dtype, len(total.position_steps)
        self._gradients, self._matrices = np.zeros((count, 2), real), np.zeros((count, 3), real)

    def add(self, batches: Iterable[Patterns]) -> None:
        """Add all patterns of ``batches``."""
        for patterns in batches:
            self._add(patterns)
        if self._epoch.refined.positions:
            gradients, matrices = torch.from_numpy(self._gradients), torch.from_numpy(self._matrices)
            self._total.position_steps += gauss_newton_step(gradients, matrices)

    def _add(self, patterns: Patterns) -> None:
        epoch, total, origins = self._epoch, self._total, patterns.patch_origins.numpy()
        ramps = self._probes.ramps(patterns.shifts, patterns.intensities)
        probes = self._probes.at(ramps) if patterns.probes is None else patterns.probes
        chi, sums = _exit_wave_updates(self._object, probes, origins, patterns.amplitudes, self._factors)
        loops.add_object_update(chi.numpy(), probes.numpy(), origins, total.object_update.numpy())
        total.deviance += float(sums[:, 0].sum())
        if epoch.needs_illumination:
            loops.add_power(probes.numpy(), origins, total.illumination.numpy())
        if epoch.refined.intensities:
            total.intensity_ratios.numpy()[patterns.numbers] = sums[:, 2] / np.maximum(sums[:, 1], 1e-12)
        if self._of_probe:
            self._add_probe_terms(chi, ramps, patterns)

    def _add_probe_terms(self, chi: Tensor, ramps: tuple[Array, Array], patterns: Patterns) -> None:
        total, origins = self._total, patterns.patch_origins.numpy()
        intensities, matrices = patterns.intensities.numpy(), self._matrices[patterns.numbers]
        loops.add_transmittance(
            self._object, origins, intensities, self._products, total.transmittance.numpy(), matrices
        )
        loops.to_probe_side(chi.numpy(), self._object, origins, self._probes.phase)
        loops.add_probe_spectra(
            torch.fft.fft2(chi).numpy(),
            *ramps,
            self._probes.spectrum.numpy(),
            self._frequencies,
            total.probe_spectrum.numpy(),
            self._gradients[patterns.numbers],
        )


def _exit_wave_updates(
    object_array: Array, probes: Tensor, origins: Array, amplitudes: Tensor, factors: _Factors
) -> tuple[Tensor, Array]:
    """Return ``chi`` ``(C, M, H, W)``, and deviance, expected and measured photons of each pattern, ``(C, 3)``."""
    waves = torch.empty_like(probes)
    loops.exit_waves(object_array, probes.numpy(), origins, waves.numpy())
    waves = torch.fft.fft2(waves)
    sums = factors.multiply(waves, amplitudes)
    return torch.fft.ifft2(waves, norm='forward'), sums


def _angular_frequencies(like: Array) -> Array:
    """Return the angular frequencies along y and x, radians per pixel, ``(2, H, W)``."""
    along_y, along_x = (2 * math.pi * np.fft.fftfreq(side) for side in like.shape)
    return np.stack(np.meshgrid(along_y, along_x, indexing='ij')).astype(like.dtype)


def _as_numpy(tensor: Tensor) -> Array:
    """Return the values of a tensor on the CPU, C-contiguous; lazy conjugates are carried out."""
    array: Array = np.ascontiguousarray(tensor.detach().resolve_conj().resolve_neg().numpy())
    return array


def precondition(update: Tensor, weight: Tensor, object_array: Tensor, gain: Tensor) -> Tensor:
    """Return ``L(U w)`` of the update ``U``, the real weight ``w`` and the object, all ``(B, h, w)``."""
    direction, phase = torch.empty_like(object_array), torch.empty_like(weight)
    arrays = (_as_numpy(update), _as_numpy(weight), _as_numpy(object_array))
    object_loops.phase_direction(*arrays, OPAQUE, direction.numpy(), phase.numpy())
    low = amplify_low_frequencies(phase, gain)
    object_loops.add_phase_direction(arrays[-1], low.numpy(), direction.numpy())
    return direction


def precondition_gradient(
    gradient: Tensor, update: Tensor, weight: Tensor, object_array: Tensor, gain: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the derivatives of :func:`precondition` with respect to the update and the object."""
    source, values, factor, wave = (_as_numpy(array) for array in (gradient, update, weight, object_array))
    of_update, of_object = torch.empty_like(object_array), torch.empty_like(object_array)
    both = weight.new_empty((2, *weight.shape))
    object_loops.phase_direction(values, factor, wave, OPAQUE, of_update.numpy(), both[0].numpy())
    object_loops.phase_cross(source, wave, both[1].numpy())
    filtered = amplify_low_frequencies(both, gain).contiguous().numpy()
    object_loops.precondition_gradient(
        source, values, factor, wave, filtered, OPAQUE, of_update.numpy(), of_object.numpy()
    )
    return of_update, of_object


def network_input(object_array: Tensor, direction: Tensor, weight: Tensor, memory: Tensor, block: int) -> Tensor:
    """Compute the input of the network, as :func:`..local_phase.network_input`, channels-last."""
    height, width = memory.shape[-2:]
    images = weight.new_empty((len(weight), height, width, IMAGES * block**2 + memory.shape[1]))
    if (height * block, width * block) != weight.shape[1:]:
        images.zero_()
    arrays = (_as_numpy(object_array), _as_numpy(direction), _as_numpy(weight))
    rows = np.empty((2, weight.shape[2] + 1), arrays[0].dtype)
    object_loops.fill_network_input(
        *arrays, memory.permute(0, 2, 3, 1).numpy(), block, OPAQUE_PHASE, rows, images.numpy()
    )
    return images.permute(0, 3, 1, 2)


def network_correction(
    object_array: Tensor, weight: Tensor, answer: Tensor, memory: Tensor, block: int
) -> tuple[Tensor, Tensor]:
    """Compute correction and memory, as :func:`..local_phase.network_correction`; overwrites ``answer``."""
    channels = 2 * block**2
    last = answer.permute(0, 2, 3, 1).contiguous()
    object_loops.add_memory(memory.permute(0, 2, 3, 1).numpy(), block, weight.shape[1], weight.shape[2], last.numpy())
    last.tanh_()
    correction = torch.empty_like(object_array, memory_format=torch.contiguous_format)
    object_loops.network_correction(
        _as_numpy(object_array), _as_numpy(weight), last.numpy(), block, OPAQUE_PHASE, correction.numpy()
    )
    return correction, last[..., channels:].permute(0, 3, 1, 2)


def add_residuals(object_array: Tensor, batch: PatternBatch, scales: AmplitudeScales, sums: ResidualSums) -> None:
    """Add the residuals of a batch (``B = 1``) with the object ``(h, w)`` complex64 to ``sums``."""
    tables = scales.noise.tables
    given = (scales.best, scales.photons, tables.ratio, EXPECTED_EPS)
    looked_up = (tables.moments.numpy(), STEP, tables.folded_normal.numpy(), OFFSET_STEP)
    good = batch.good_pixels.contiguous().numpy().reshape(-1)
    work = np.empty((4, min(WORK_PIXELS, good.size)), good.dtype)
    rows = np.empty((5, batch.probes.shape[-1]), good.dtype)
    objects = _as_numpy(object_array)
    detector = sums.detector.view(2, -1).numpy()
    for _, probes, amplitudes, origins in _parts(batch):
        waves = torch.empty_like(probes)
        loops.exit_waves(objects, probes.numpy(), origins, waves.numpy())
        waves = torch.fft.fft2(waves)
        of_pattern, shares = np.empty((len(waves), 5)), np.empty((*waves.shape[:2], 2), good.dtype)
        results = (detector, of_pattern, shares)
        residual_loops.compare_waves(_pixels_on_one_axis(waves), amplitudes, good, given, looked_up, work, results)
        chi = torch.fft.ifft2(waves, norm='forward')
        residual_loops.add_maps(
            probes.numpy(), chi.numpy(), origins, of_pattern, shares, scales.photons, rows, sums.maps.numpy()
        )
        sums.totals += torch.from_numpy(of_pattern[:, 2:].sum(axis=0))


def proximal_point(object_array: Tensor, ratio: Tensor, dual_y: Tensor, dual_x: Tensor, steps: int) -> Tensor:
    """Compute the proximal point of total variation, as :func:`..total_variation.proximal_point`."""
    present = torch.empty_like(object_array)
    source, factor, result = _as_numpy(object_array), _as_numpy(ratio), present.numpy()
    size, along_y, along_x = dual_step_sizes(ratio).numpy(), dual_y.numpy(), dual_x.numpy()
    for _ in range(steps):
        object_loops.add_divergence(source, factor, along_y, along_x, result)
        object_loops.ascend_dual(result, size, along_y, along_x)
    object_loops.add_divergence(source, factor, along_y, along_x, result)
    return present


COMPILED = Kernels(
    description='numba',
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
    batch_bytes=BATCH_BYTES,
)


def compile_all() -> None:
    """Compile all loops in single precision, or load them from numba's cache.

    Where compiled code cannot be saved (a full disk), it is used all the same: numba keeps it before it saves it.
    """
    unsaved: OSError | None = None
    for _ in range(MOST_LOOPS):
        try:
            _run_all()
        except OSError as error:
            unsaved = error
        else:
            break
    else:
        _run_all()
    if unsaved is not None:
        logger.warning('Compiled kernels cannot be saved (%s): the next process compiles them again.', unsaved)


def _run_all() -> None:
    """Run every loop once, on one pattern of 2 x 2 pixels."""
    wave, real = torch.ones((2, 2), dtype=torch.complex64), torch.ones((2, 2))
    patterns = Patterns(0, real[None], torch.zeros((1, 2), dtype=torch.int64), real[:1], real[0, :1], None)
    for likelihood in LIKELIHOODS:
        epoch = Epoch(wave, wave[None], wave, real, likelihood, RefinedQuantities(True, True, True), True)
        add_gradients(epoch, [patterns], Gradients.zeros(epoch, 1))
    precondition(wave[None], real[None], wave[None], torch.ones((2, 2)))
    batch = PatternBatch(real[None, None], wave[None, None, None], patterns.patch_origins[None], real)
    fit_gradient(fit(wave[None], batch, 'amplitude', True).waves, batch, 'amplitude', wave[None], None, (2, 2))
    scales = AmplitudeScales(1.0, 1.0, PhotonNoise(1.0, wave.device))
    add_residuals(wave, batch, scales, ResidualSums.zeros((2, 2), (2, 2), wave.device))
    precondition_gradient(wave[None], wave[None], real[None], wave[None], torch.ones((2, 2)))
    proximal_point(wave, real, wave.clone(), wave.clone(), 1)
    for kept in (torch.zeros((1, 4, 1, 1)), torch.zeros((1, 1, 1, 12))[..., 8:].permute(0, 3, 1, 2)):
        network_input(wave[None], wave[None], real[None], kept, 2)
        network_correction(wave[None], real[None], torch.zeros((1, 12, 1, 1)), kept, 2)
