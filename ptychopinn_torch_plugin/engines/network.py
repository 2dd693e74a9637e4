"""Inference: a trained network reconstructs the object of a scan.

The scan is divided into windows: one window, the whole scan, or groups like those of the training, as the generator
requires. Windows of one size are reconstructed together, each in its own object array; the patterns of a large window
are processed in batches, so memory does not grow with the scan. Then the objects of the windows are stitched. Several
processes reconstruct different windows at a time, or divide the positions of one window.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..config import InferenceConfig
from ..data.grouping import compact_windows, nearest_neighbours
from ..data.sharding import processes
from ..data.tensors import CACHE_BYTES, ScanTensors, extent_of, patch_origins_of
from ..errors import ConfigurationError
from ..models.base import Generator, Measurement
from ..physics.forward import PatternBatch
from ..physics.patches import split_positions
from ..types import ReconstructionState
from .progress import ProgressReporter
from .stitching import Stitcher, mask_object
from .threads import sum_in_threads

OBJECT_MULTIPLE = 16
"""Sides of the object arrays of groups are rounded up to this: most then have the same shape and form one batch."""


class Windows(NamedTuple):
    """Windows of one size that are reconstructed together."""

    indices: npt.NDArray[np.integer]
    """Positions of the scan, ``(B, C)``."""
    origins: npt.NDArray[np.integer]
    """First pixel (y, x) of each object array on the object grid, ``(B, 2)``."""
    shape: tuple[int, int]
    """Height and width of every object array."""


def windows_of(
    state: ReconstructionState, generator: Generator, trained_size: int, config: InferenceConfig
) -> list[Windows]:
    """Divide a scan into the windows that ``generator`` requires.

    Windows are compact and share no position, unless the generator is anchored: then every position has a window of its
    nearest neighbours, and as many of them form a batch as the batch size allows.

    Args:
        state: the positions.
        generator: the network.
        trained_size: size of the groups that it was trained on.
        config: the requested window and batch sizes.
    """
    positions = state.positions.cpu().numpy().astype(np.float64)
    patch_origins = patch_origins_of(state)
    patch_shape = (state.probe.shape[-2], state.probe.shape[-1])
    window_size = generator.window_size(config.window_size, trained_size) or len(positions)
    parts = compact_windows(positions, window_size)
    if generator.is_anchored and window_size < len(positions):
        # In the order of the compact windows, so that each overlaps what is stitched before it.
        anchors = np.concatenate(parts)
        neighbours = nearest_neighbours(positions, window_size - 1)
        groups = np.concatenate([anchors[:, None], neighbours[anchors]], axis=1)
        single = [_window(group, patch_origins, patch_shape, OBJECT_MULTIPLE) for group in groups]
        return _batched(single, config.batch_size)
    return [_window(part, patch_origins, patch_shape, 1) for part in parts]


def _window(
    indices: npt.NDArray[np.integer], patch_origins: npt.NDArray[np.int64], patch_shape: tuple[int, int], multiple: int
) -> Windows:
    """Return one window, with sides rounded up to a ``multiple``."""
    origin, (height, width) = extent_of(patch_origins[indices], patch_shape)
    return Windows(indices[None], np.array([origin]), (height + -height % multiple, width + -width % multiple))


def _batched(single: Sequence[Windows], batch_size: int) -> list[Windows]:
    """Join consecutive windows of one size and shape."""
    batches = []
    for (_, size, shape), group in groupby(single, key=lambda one: (*one.indices.shape, one.shape)):
        alike = list(group)
        count = max(1, batch_size // size)
        for chunk in (alike[first : first + count] for first in range(0, len(alike), count)):
            indices, origins = (np.concatenate([one[field] for one in chunk]) for field in (0, 1))
            batches.append(Windows(indices, origins, shape))
    return batches


def steps_of(generator: Generator, requested: int) -> int:
    """Return the number of object arrays that ``generator`` yields for every window; 0 requests its default.

    Raises:
        ConfigurationError: it cannot yield so many.
    """
    if generator.most_steps is not None and requested > generator.most_steps:
        raise ConfigurationError(
            f'inference.steps = {requested}: the network of this model computes its patches in {generator.most_steps} '
            'step; set 0, or train a model with the generator "unrolled".'
        )
    return requested or generator.default_steps


class Predictor:
    """Applies a network to one scan.

    Args:
        tensors: the scan on its device.
        state: probe, positions and intensities.
        generator: the network, on the same device.
        windows: the windows of the scan, from :func:`windows_of`.
        steps: object arrays that the network yields for every window.
        batch_size: patterns in memory at a time.
        progress: receives every step and preview, and says when to stop.
    """

    def __init__(
        self,
        tensors: ScanTensors,
        state: ReconstructionState,
        generator: Generator,
        windows: Sequence[Windows],
        steps: int,
        batch_size: int,
        progress: ProgressReporter,
    ) -> None:
        self._tensors = tensors
        self._state = state
        self._generator = generator
        self._windows = windows
        self._steps = steps
        self._batch_size = batch_size
        self._progress = progress
        self._origin, self._shape = extent_of(patch_origins_of(state), tensors.pattern_shape)

    def predict(self) -> ReconstructionState:
        """Reconstruct all windows and return the state with the stitched object, the same in every process."""
        stitcher = Stitcher(self._shape, self._tensors.device)
        at_a_time = _windows_at_a_time(self._windows, self._generator)
        is_single = len(self._windows) == 1 and len(self._windows[0].indices) == 1
        with torch.inference_mode():
            for first in range(0, len(self._windows), at_a_time):
                turn = self._windows[first : first + at_a_time]
                if at_a_time == 1:
                    results = [self._reconstruct(turn[0], preview=is_single, divides_positions=True)]
                else:
                    results = self._reconstruct_one_each(turn)
                for windows, (objects, photons) in zip(turn, results, strict=True):
                    self._stitch(stitcher, windows, objects, photons)
                if not is_single:
                    self._progress.preview(stitcher.result, self._origin)
                if self._progress.should_stop():
                    break
            result = stitcher.result()
        # A tensor that was made in inference mode cannot enter a computation that is differentiated; a copy can.
        return replace(self._state, object_array=result.clone(), origin=self._origin)

    def _reconstruct_one_each(self, turn: Sequence[Windows]) -> list[tuple[Tensor, Tensor]]:
        """Reconstruct one of ``turn`` in each process, and return objects and photons of all."""
        rank = processes().rank
        results = []
        for windows in turn:
            objects = torch.zeros(_shape_of(windows), dtype=torch.complex64, device=self._tensors.device)
            results.append((objects, torch.zeros(objects.shape, device=objects.device)))
        if rank < len(turn):
            results[rank] = self._reconstruct(turn[rank], preview=False, divides_positions=False)
        else:  # as many exchanges of flags as in the others
            for _ in range(self._steps):
                if self._progress.should_stop():
                    break
        processes().sum([array for pair in results for array in pair])
        return results

    def _reconstruct(self, windows: Windows, *, preview: bool, divides_positions: bool) -> tuple[Tensor, Tensor]:
        """Return the objects of some windows, and the photons on them, ``(B, h, w)``.

        With ``divides_positions``, every process computes the sums over its own part of the positions.
        """
        share = processes().share(windows.indices.shape[1]) if divides_positions else None
        batches = _WindowBatches(self._tensors, self._state, windows, self._batch_size, share)
        objects = torch.ones(_shape_of(windows), dtype=torch.complex64, device=self._tensors.device)
        photons = batches.illumination(objects)
        kernels = self._tensors.kernels
        measured = Measurement(
            batches.object_update,
            batches,
            objects,
            photons,
            kernels.precondition,
            kernels.network_input,
            kernels.network_correction,
        )
        origin = int(windows.origins[0, 0]), int(windows.origins[0, 1])
        for estimate in self._generator.unroll(measured, self._steps):
            objects = estimate
            self._progress.advance()
            if preview:
                self._progress.preview(partial(mask_object, objects[0], photons[0]), origin)
            if self._progress.should_stop():
                break
        return objects, photons

    def _stitch(self, stitcher: Stitcher, windows: Windows, objects: Tensor, photons: Tensor) -> None:
        for object_array, weight, corner in zip(objects, photons, windows.origins, strict=True):
            origin = int(corner[0]) - self._origin[0], int(corner[1]) - self._origin[1]
            total = stitcher.overlap(object_array, weight, origin)
            phase = torch.where(total.abs() > 0, total / total.abs().clamp_min(1e-30), torch.ones_like(total))
            stitcher.add_object(object_array * phase, weight, origin)


def turns_of(windows: Sequence[Windows], generator: Generator) -> int:
    """Return how often a process reconstructs windows, or its part of them, until all are reconstructed."""
    return math.ceil(len(windows) / _windows_at_a_time(windows, generator))


def _windows_at_a_time(windows: Sequence[Windows], generator: Generator) -> int:
    """Return the number of processes if each reconstructs windows of its own, 1 if they divide every window."""
    size = processes().size
    # An anchored generator needs every pattern of its window.
    return size if generator.is_anchored or len(windows) >= size else 1


def _shape_of(windows: Windows) -> tuple[int, int, int]:
    return len(windows.indices), *windows.shape


class _WindowBatches:
    """The patterns of some windows in batches; kept from step to step where memory allows.

    Args:
        tensors: the scan on its device.
        state: probe, positions and intensities.
        windows: the windows.
        batch_size: patterns in memory at a time.
        share: the part of the positions of this process, whose sums are added to those of the others; None for all.
    """

    def __init__(
        self,
        tensors: ScanTensors,
        state: ReconstructionState,
        windows: Windows,
        batch_size: int,
        share: range | None,
    ) -> None:
        self._tensors = tensors
        self._state = state
        self._windows = windows
        self._is_shared = share is not None
        indices = windows.indices if share is None else windows.indices[:, share.start : share.stop]
        threads = torch.get_num_threads() if tensors.device.type == 'cpu' else 1
        count = min(max(threads, math.ceil(indices.size / batch_size)), indices.shape[1])
        self._chunks = np.array_split(indices, count, axis=1) if count else []
        self._numbers = range(len(self._chunks))
        modes, height, width = state.probe.shape
        fits = indices.size * height * width * (4 + 8 * modes) <= CACHE_BYTES
        self._kept: dict[int, PatternBatch] | None = {} if fits or indices.size <= batch_size else None

    def __iter__(self) -> Iterator[PatternBatch]:
        return map(self._batch, self._numbers)

    def _batch(self, number: int) -> PatternBatch:
        if self._kept is None:
            return self._make(self._chunks[number])
        if number not in self._kept:
            self._kept[number] = self._make(self._chunks[number])
        return self._kept[number]

    def _make(self, chunk: npt.NDArray[np.integer]) -> PatternBatch:
        tensors, state, indices = self._tensors, self._state, chunk.ravel()
        shape = chunk.shape
        chosen = torch.from_numpy(indices).to(tensors.device)
        origins, shifts = split_positions(state.positions[chosen], tensors.pattern_shape)
        probes = tensors.kernels.shift_probes(state.probe, tensors.phase, shifts, state.intensities[chosen])
        first = torch.from_numpy(self._windows.origins).to(tensors.device)[:, None]
        return PatternBatch(
            amplitudes=tensors.amplitudes(indices).reshape(*shape, *tensors.pattern_shape),
            probes=probes.reshape(*shape, *probes.shape[1:]),
            patch_origins=origins.reshape(*shape, 2) - first,
            good_pixels=tensors.good_pixels,
        )

    def object_update(self, objects: Tensor) -> Tensor:
        """Compute the update of object arrays ``(B, h, w)`` complex64 by all patterns of their windows."""

        def update_by(numbers: Sequence[int]) -> _Total:
            total = torch.zeros_like(objects)
            for batch in map(self._batch, numbers):
                self._tensors.kernels.add_object_update(objects, batch, total)
            return _Total(total)

        return self._sum(update_by, objects)

    def illumination(self, objects: Tensor) -> Tensor:
        """Compute the photons on each pixel of object arrays ``(B, h, w)`` for a transparent object, real."""

        def photons_of(numbers: Sequence[int]) -> _Total:
            total = torch.zeros(objects.shape, device=objects.device)
            for batch in map(self._batch, numbers):
                self._tensors.kernels.add_illumination(batch.probes, batch.patch_origins, total)
            return _Total(total)

        return self._sum(photons_of, objects)

    def _sum(self, sum_of: Callable[[Sequence[int]], _Total], objects: Tensor) -> Tensor:
        total = sum_in_threads(self._numbers, sum_of, objects.device).array
        if self._is_shared:
            processes().sum([total])
        return total


class _Total:
    """A sum of arrays."""

    def __init__(self, array: Tensor) -> None:
        self.array = array

    def add(self, other: _Total) -> None:
        self.array += other.array
