"""Gradients of the deviance of a whole scan, accumulated over batches that fit the cache.

Formulas and the factor of every derivative: :mod:`ptychopinn_torch_plugin.physics.forward` (object) and
:mod:`ptychopinn_torch_plugin.physics.derivatives` (probe, positions, frame intensities). On a CPU the batches are
divided among as many threads as torch may use. Each thread accumulates its own sums, which are then added in a fixed
order, so the result does not depend on the timing of the threads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..data.tensors import CACHE_BYTES, ScanTensors, ShiftedProbes
from ..physics.derivatives import intensity_ratio, position_step, probe_spectra
from ..physics.forward import PatternBatch, Simulation, exit_wave_update, object_update, simulate
from ..physics.noise_models import amplitude_deviance, poisson_cost
from ..physics.patches import position_dtype
from ..physics.probe import illumination
from ..types import ReconstructionState

CPU_BATCH_BYTES = 2**20
"""Bytes of complex exit waves in one batch on a CPU: more would not stay in its cache."""


@dataclass(frozen=True)
class RefinedQuantities:
    """Quantities, besides the object, whose derivatives are computed."""

    probe: bool
    positions: bool
    intensities: bool


@dataclass(eq=False)
class Gradients:
    """Sums over all patterns of one epoch."""

    object_update: Tensor
    """``U = -1/4 dD/dO*``, ``(h, w)`` complex64."""
    illumination: Tensor
    """Photons on each pixel of the object array for a transparent object, ``(h, w)`` float32."""
    probe_spectrum: Tensor
    """Spectrum of the probe update, ``sum_j S_jm``, ``(M, H, W)`` complex64."""
    transmittance: Tensor
    """``sum_j s_j |O_j|^2``, ``(H, W)`` float32."""
    position_steps: Tensor
    """Gauss-Newton steps, ``(n, 2)`` float32, pixels."""
    intensity_ratios: Tensor
    """Measured over expected photons of each pattern, ``(n,)`` float32."""
    deviance: Tensor
    """Mean deviance per measured pixel, scalar."""

    @classmethod
    def zeros(cls, state: ReconstructionState) -> Gradients:
        """Return sums over no pattern."""
        device = state.object_array.device
        return cls(
            object_update=torch.zeros_like(state.object_array),
            illumination=torch.zeros_like(state.object_array.real),
            probe_spectrum=torch.zeros_like(state.probe),
            transmittance=torch.zeros_like(state.probe[0].real),
            position_steps=torch.zeros(state.positions.shape, device=device),
            intensity_ratios=torch.ones_like(state.intensities),
            deviance=torch.zeros((), dtype=position_dtype(device), device=device),
        )

    def add(self, other: Gradients) -> None:
        """Add the sums over other patterns; each pattern is in one of the two."""
        self.object_update += other.object_update
        self.illumination += other.illumination
        self.probe_spectrum += other.probe_spectrum
        self.transmittance += other.transmittance
        self.position_steps += other.position_steps
        self.intensity_ratios *= other.intensity_ratios
        self.deviance += other.deviance


class GradientAccumulation:
    """Computes the gradients of one scan.

    Args:
        tensors: the scan on its device.
        modes: number of probe modes.
        likelihood: 'amplitude' or 'poisson'.
        batch_size: largest number of patterns in memory at a time; changes the result by rounding only.
        is_fixed: probe, positions and intensities never change, so their products are computed once.
    """

    def __init__(self, tensors: ScanTensors, modes: int, likelihood: str, batch_size: int, *, is_fixed: bool) -> None:
        self._tensors = tensors
        self._likelihood = likelihood
        pixels = math.prod(tensors.pattern_shape)
        is_cpu = tensors.device.type == 'cpu'
        self._threads = torch.get_num_threads() if is_cpu else 1
        size = min(batch_size, max(1, CPU_BATCH_BYTES // (8 * modes * pixels))) if is_cpu else batch_size
        self._batches = np.array_split(np.arange(tensors.size), max(1, math.ceil(tensors.size / size)))
        self._measured_pixels = tensors.good_pixels.sum() * tensors.size
        self._is_fixed = is_fixed
        fits = 4 * tensors.size * pixels <= CACHE_BYTES
        self._amplitudes: dict[int, Tensor] | None = {} if fits else None
        fits = 16 * modes * tensors.size * pixels <= CACHE_BYTES
        self._probes: dict[int, ShiftedProbes] | None = {} if is_fixed and fits else None
        self._saturated_costs: dict[int, Tensor] = {}
        self._illumination: Tensor | None = None

    def compute(self, state: ReconstructionState, refined: RefinedQuantities) -> Gradients:
        """Return the gradients at ``state``, over all patterns."""
        shares = np.array_split(np.arange(len(self._batches)), min(self._threads, len(self._batches)))
        if len(shares) == 1:
            total = self._sum(shares[0], state, refined)
        else:
            with _single_threaded_torch(), ThreadPoolExecutor(len(shares)) as pool:
                total, *others = pool.map(lambda share: self._sum(share, state, refined), shares)
            for other in others:
                total.add(other)
        if self._is_fixed:
            if self._illumination is None:
                self._illumination = total.illumination
            total.illumination = self._illumination
        return total

    def _sum(
        self, numbers: npt.NDArray[np.integer], state: ReconstructionState, refined: RefinedQuantities
    ) -> Gradients:
        with torch.no_grad():  # the mode belongs to the thread, so it is set in each
            total = Gradients.zeros(state)
            for number in numbers.tolist():
                self._add_batch(number, state, refined, total)
        return total

    def _add_batch(self, number: int, state: ReconstructionState, refined: RefinedQuantities, total: Gradients) -> None:
        shifted = self._probes_at(number, state)
        origin = torch.tensor(state.origin, device=self._tensors.device)
        batch = PatternBatch(
            amplitudes=self._measured(number)[None],
            probes=shifted.probes[None],
            patch_origins=(shifted.patch_origins - origin)[None],
            good_pixels=self._tensors.good_pixels,
        )
        simulation = simulate(state.object_array[None], batch.probes, batch.patch_origins)
        chi = exit_wave_update(simulation, batch, self._likelihood)
        total.object_update += object_update(chi, batch, state.object_shape)[0]
        if self._illumination is None:
            total.illumination += illumination(batch.probes, batch.patch_origins, state.object_shape)[0]
        chosen = torch.from_numpy(self._batches[number]).to(self._tensors.device)
        if refined.probe or refined.positions:
            patches = simulation.object_patches[0]
            spectra = probe_spectra(chi[0], patches, shifted.ramps, self._tensors.phase)
            transmittance = patches.real.square() + patches.imag.square()
            intensities = state.intensities[chosen]
            total.probe_spectrum += spectra.sum(dim=0)
            total.transmittance += torch.tensordot(intensities, transmittance, dims=1)
            if refined.positions:
                total.position_steps[chosen] = position_step(spectra, transmittance, intensities, state.probe)
        if refined.intensities:
            ratio = intensity_ratio(batch.amplitudes[0], simulation.expected[0], batch.good_pixels)
            total.intensity_ratios[chosen] = ratio
        total.deviance += self._deviance(number, batch, simulation)

    def _measured(self, number: int) -> Tensor:
        if self._amplitudes is None:
            return self._tensors.amplitudes(self._batches[number])
        if number not in self._amplitudes:
            self._amplitudes[number] = self._tensors.amplitudes(self._batches[number])
        return self._amplitudes[number]

    def _probes_at(self, number: int, state: ReconstructionState) -> ShiftedProbes:
        if self._probes is None:
            return self._tensors.probes(state, self._batches[number])
        if number not in self._probes:
            self._probes[number] = self._tensors.probes(state, self._batches[number])
        return self._probes[number]

    def _deviance(self, number: int, batch: PatternBatch, simulation: Simulation) -> Tensor:
        """Return the share of one batch in the mean deviance; the part that depends on the counts alone is kept."""
        good = batch.good_pixels
        if self._likelihood != 'poisson':
            share = batch.amplitudes.shape[1] / self._tensors.size
            return share * amplitude_deviance(simulation.amplitudes, batch.amplitudes, good)
        counts = batch.amplitudes.square()
        accurate = position_dtype(counts.device)
        if number not in self._saturated_costs:
            self._saturated_costs[number] = (poisson_cost(counts, counts) * good).sum(dtype=accurate)
        cost = (poisson_cost(simulation.expected, counts) * good).sum(dtype=accurate)
        return (cost - self._saturated_costs[number]) / self._measured_pixels


@contextmanager
def _single_threaded_torch() -> Iterator[None]:
    """Let every torch operation use one thread while whole batches are divided among threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
