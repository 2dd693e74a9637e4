"""Gradients of the deviance of a whole scan, accumulated over batches that fit the cache.

Formulas and the factor of every derivative: :mod:`ptychopinn_torch_plugin.physics.forward` (object) and
:mod:`ptychopinn_torch_plugin.physics.derivatives` (probe, positions, frame intensities); they are computed by the
kernels of the scan (:mod:`ptychopinn_torch_plugin.physics.kernels`). On a CPU the batches are divided among as many
threads as torch may use.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from ..data.sharding import processes
from ..data.tensors import CACHE_BYTES, ScanTensors, free_device_bytes
from ..physics.kernels.sums import Epoch, Gradients, Patterns, RefinedQuantities
from ..physics.patches import split_positions
from ..types import ReconstructionState
from .threads import sum_in_threads

GPU_BATCHES = 32
"""Largest factor between the configured batch size and that of a GPU."""
GPU_MEMORY_SHARE = 0.25
WAVES_AT_A_TIME = 10
"""Arrays as large as the exit waves that the torch kernels hold at a time, roughly."""


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
        wave_bytes = 8 * modes * pixels
        if tensors.device.type == 'cpu':
            batch_size = min(batch_size, max(1, tensors.kernels.batch_bytes // wave_bytes))
        elif (free := free_device_bytes(tensors.device)) is not None:
            batch_size = gpu_batch_size(batch_size, wave_bytes, free)
        share = processes().share(tensors.size)
        self._batches = _slices(share, batch_size)
        self._measured_pixels = tensors.good_pixels.sum() * tensors.size
        self._is_fixed = is_fixed
        fits = 4 * len(share) * pixels <= CACHE_BYTES
        self._amplitudes: dict[int, Tensor] | None = {} if fits else None
        fits = 16 * modes * len(share) * pixels <= CACHE_BYTES
        self._probes: dict[int, Tensor] | None = {} if is_fixed and fits else None
        self._illumination: Tensor | None = None

    def compute(self, state: ReconstructionState, refined: RefinedQuantities) -> Gradients:
        """Return the gradients at ``state`` over all patterns; their deviance is the mean over the measured pixels."""
        epoch = Epoch(
            object_array=state.object_array,
            probe=state.probe,
            phase=self._tensors.phase,
            good_pixels=self._tensors.good_pixels,
            likelihood=self._likelihood,
            refined=refined,
            needs_illumination=self._illumination is None,
        )
        origins, shifts = split_positions(state.positions, self._tensors.pattern_shape)
        origins = origins - torch.tensor(state.origin, device=origins.device)

        def patterns_of(numbers: Iterable[slice]) -> Iterator[Patterns]:
            for chosen in numbers:
                yield self._patterns(epoch, chosen, origins, shifts, state.intensities)

        def add(numbers: Sequence[slice]) -> Gradients:
            total = Gradients.zeros(epoch, self._tensors.size)
            self._tensors.kernels.add_gradients(epoch, patterns_of(numbers), total)
            return total

        total = sum_in_threads(self._batches, add, self._tensors.device)
        _sum_over_processes(total)
        total.deviance /= self._measured_pixels
        if self._is_fixed:
            if self._illumination is None:
                self._illumination = total.illumination
            total.illumination = self._illumination
        return total

    def _patterns(self, epoch: Epoch, chosen: slice, origins: Tensor, shifts: Tensor, intensities: Tensor) -> Patterns:
        patterns = Patterns(
            first=chosen.start,
            amplitudes=self._measured(chosen),
            patch_origins=origins[chosen],
            shifts=shifts[chosen],
            intensities=intensities[chosen],
            probes=None,
        )
        if self._probes is None:
            return patterns
        if chosen.start not in self._probes:
            self._probes[chosen.start] = self._tensors.kernels.shift_probes(
                epoch.probe, epoch.phase, patterns.shifts, patterns.intensities
            )
        return patterns._replace(probes=self._probes[chosen.start])

    def _measured(self, chosen: slice) -> Tensor:
        if self._amplitudes is None:
            return self._tensors.amplitudes(chosen)
        if chosen.start not in self._amplitudes:
            self._amplitudes[chosen.start] = self._tensors.amplitudes(chosen)
        return self._amplitudes[chosen.start]


def gpu_batch_size(batch_size: int, wave_bytes: int, free_bytes: int) -> int:
    """Return the patterns in one batch on a GPU, which is busy with large batches only.

    Args:
        batch_size: the configured size, the least; halved where memory ran out, which halves the result as well.
        wave_bytes: bytes of the exit waves of one pattern.
        free_bytes: free memory of the GPU.
    """
    fitting = int(GPU_MEMORY_SHARE * free_bytes / (WAVES_AT_A_TIME * wave_bytes))
    return max(batch_size, min(GPU_BATCHES * batch_size, fitting))


def _sum_over_processes(total: Gradients) -> None:
    """Add the sums of the other processes, each over its own patterns."""
    if processes().size == 1:
        return
    total.intensity_ratios -= 1  # 1 where another process has the pattern
    sums = [total.object_update, total.illumination, total.probe_spectrum, total.transmittance]
    processes().sum([*sums, total.position_steps, total.intensity_ratios, total.deviance])
    total.intensity_ratios += 1


def _slices(patterns: range, step: int) -> list[slice]:
    """Divide ``patterns`` into slices of at most ``step``, as equal as possible."""
    size, first = len(patterns), patterns.start
    count = math.ceil(size / step)
    return [slice(first + number * size // count, first + (number + 1) * size // count) for number in range(count)]
