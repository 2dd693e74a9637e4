"""One look at all patterns: what they say about every unknown, added up over batches that fit the cache.

On a CPU the batches are shared out to as many threads as torch may use. Each thread adds up its own sums, which are
then added in a fixed order, so the result does not depend on who was faster.
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

from ..data.tensors import CACHE_BYTES, ScanTensors
from ..physics.noise_models import amplitude_deviance, poisson_cost, saturated_cost
from ..physics.residual import (
    Batch,
    Experiment,
    Residual,
    Shifted,
    intensity_ratio,
    object_change,
    photons_of,
    position_change,
    residual_of,
    returned_spectra,
    shift_probe,
    transmission,
)

CPU_BATCH_BYTES = 2**20
"""Complex frames that are looked at together on a CPU: more would not stay in its cache."""


@dataclass(frozen=True)
class Wanted:
    """Which unknowns a look shall tell about, besides the object."""

    probe: bool
    positions: bool
    intensity: bool


@dataclass(eq=False)
class Unknowns:
    """The state of a refinement."""

    canvas: Tensor
    """Object, ``(h, w)`` complex64."""
    probe: Tensor
    """Modes, ``(M, H, W)`` complex64."""
    positions: Tensor
    """First pixel (y, x) of each frame on the canvas, with its fraction, ``(n, 2)`` float32."""
    intensities: Tensor
    """Photons of each frame relative to the mean, ``(n,)`` float32."""


@dataclass(eq=False)
class Sums:
    """What one look at all patterns gives."""

    direction: Tensor
    """Change of the object times its photons, ``(h, w)`` complex64."""
    photons: Tensor
    """Photons that lit the canvas, ``(h, w)`` float32."""
    probe_spectrum: Tensor
    """Spectrum of the change of the probe times its transparency, ``(M, H, W)`` complex64."""
    transparency: Tensor
    """``sum_j |O_j|^2``, ``(H, W)`` float32."""
    position_change: Tensor
    """Gauss-Newton steps, ``(n, 2)`` float32."""
    intensity_ratio: Tensor
    """Measured over expected photons of each frame, ``(n,)`` float32."""
    deviance: float = 0.0
    """Mean deviance per measured pixel."""

    @classmethod
    def zero(cls, state: Unknowns) -> Sums:
        """Nothing seen yet."""
        return cls(
            direction=torch.zeros_like(state.canvas),
            photons=torch.zeros_like(state.canvas.real),
            probe_spectrum=torch.zeros_like(state.probe),
            transparency=torch.zeros_like(state.probe[0].real),
            position_change=torch.zeros_like(state.positions),
            intensity_ratio=torch.ones_like(state.intensities),
        )

    def add(self, other: Sums) -> None:
        """Add what another thread saw; every frame was seen by one of them."""
        self.direction += other.direction
        self.photons += other.photons
        self.probe_spectrum += other.probe_spectrum
        self.transparency += other.transparency
        self.position_change += other.position_change
        self.intensity_ratio *= other.intensity_ratio
        self.deviance += other.deviance


class Sweep:
    """Looks at all patterns of a scan.

    Args:
        tensors: the scan on its device.
        experiment: mask, quadratic phase, likelihood.
        batch_size: most patterns in memory at a time; no effect on the result beyond rounding.
        is_fixed: neither the probe nor the positions will ever change: what depends on them is computed once.
    """

    def __init__(self, tensors: ScanTensors, experiment: Experiment, batch_size: int, *, is_fixed: bool) -> None:
        self._tensors = tensors
        self._experiment = experiment
        self._good = float(experiment.good_pixels.sum()) * tensors.scan.size
        frames = tensors.scan.size * math.prod(tensors.scan.pattern_shape)
        modes = tensors.probe.shape[0]
        is_cpu = tensors.device.type == 'cpu'
        self._threads = torch.get_num_threads() if is_cpu else 1
        size = (
            min(batch_size, max(1, CPU_BATCH_BYTES // (8 * modes * frames // tensors.scan.size)))
            if is_cpu
            else batch_size
        )
        everything = np.arange(tensors.scan.size)
        self._batches = np.array_split(everything, max(1, math.ceil(tensors.scan.size / size)))
        self._amplitudes: dict[int, Tensor] | None = {} if 4 * frames <= CACHE_BYTES else None
        self._shifted: dict[int, Shifted] | None = {} if is_fixed and 16 * modes * frames <= CACHE_BYTES else None
        self._saturated: dict[int, float] = {}
        self._photons: Tensor | None = None
        self._is_fixed = is_fixed

    def look(self, state: Unknowns, wanted: Wanted) -> Sums:
        """Go through all patterns once."""
        lots = np.array_split(np.arange(len(self._batches)), min(self._threads, len(self._batches)))
        if len(lots) == 1:
            sums = self._look_at(lots[0], state, wanted)
        else:
            with _single_threaded_torch(), ThreadPoolExecutor(len(lots)) as pool:
                first, *others = pool.map(lambda lot: self._look_at(lot, state, wanted), lots)
            sums = first
            for other in others:
                sums.add(other)
        if self._is_fixed:
            if self._photons is None:
                self._photons = sums.photons
            sums.photons = self._photons
        return sums

    def _look_at(self, numbers: npt.NDArray[np.integer], state: Unknowns, wanted: Wanted) -> Sums:
        with torch.no_grad():  # each thread has its own mode; the caller may be in either of the two
            sums = Sums.zero(state)
            for number in numbers.tolist():
                self._look_at_batch(number, state, wanted, sums)
        return sums

    def _look_at_batch(self, number: int, state: Unknowns, wanted: Wanted, sums: Sums) -> None:
        experiment = self._experiment
        indices, batch = self._batch(number, state, wanted)
        residual = residual_of(state.canvas, state.probe, batch, experiment, self._probe_at(number, state, batch))
        shape = (state.canvas.shape[-2], state.canvas.shape[-1])
        sums.direction += object_change(residual, batch.patch_origins, shape)
        if self._photons is None:
            sums.photons += photons_of(residual.probes, batch.patch_origins, shape)
        if wanted.probe or wanted.positions:
            returned = returned_spectra(residual, experiment.phase)
            sums.probe_spectrum += returned.sum(dim=0)
            sums.transparency += transmission(residual).sum(dim=0)
            if wanted.positions:
                sums.position_change[indices] = position_change(residual, returned, state.probe)
        if wanted.intensity:
            sums.intensity_ratio[indices] = intensity_ratio(batch.amplitudes, residual, experiment.good_pixels)
        sums.deviance += self._deviance(number, batch.amplitudes, residual)

    def _batch(self, number: int, state: Unknowns, wanted: Wanted) -> tuple[Tensor, Batch]:
        chosen = torch.from_numpy(self._batches[number]).to(self._tensors.device)
        amplitudes = self._measured(number)
        if wanted.intensity:
            # The intensities are divided out of the data instead of multiplied onto the model: nothing else changes.
            amplitudes = amplitudes / state.intensities[chosen].sqrt()[:, None, None]
        positions = state.positions[chosen]
        first = positions.floor()
        return chosen, Batch(amplitudes, first.long(), positions - first)

    def _measured(self, number: int) -> Tensor:
        if self._amplitudes is None:
            return self._tensors.amplitudes(self._batches[number])
        if number not in self._amplitudes:
            self._amplitudes[number] = self._tensors.amplitudes(self._batches[number])
        return self._amplitudes[number]

    def _probe_at(self, number: int, state: Unknowns, batch: Batch) -> Shifted:
        if self._shifted is None:
            return shift_probe(state.probe, batch.subpixel_shifts, self._experiment.phase)
        if number not in self._shifted:
            self._shifted[number] = shift_probe(state.probe, batch.subpixel_shifts, self._experiment.phase)
        return self._shifted[number]

    def _deviance(self, number: int, measured: Tensor, residual: Residual) -> float:
        """This batch's share of the mean deviance."""
        good = self._experiment.good_pixels
        if self._experiment.likelihood != 'poisson':
            share = len(measured) / self._tensors.scan.size
            return share * float(amplitude_deviance(residual.amplitudes, measured, good))
        counts = measured.square()
        if number not in self._saturated:
            self._saturated[number] = float((saturated_cost(counts) * good).sum(dtype=torch.float64))
        cost = float((poisson_cost(residual.expected, counts) * good).sum(dtype=torch.float64))
        return (cost - self._saturated[number]) / self._good


@contextmanager
def _single_threaded_torch() -> Iterator[None]:
    """Whole batches are shared out to threads, so no operation shall start threads of its own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
