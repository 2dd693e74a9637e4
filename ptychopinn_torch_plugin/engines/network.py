"""Inference: a trained network reconstructs the object of a scan.

The scan is divided into windows: one window, the whole scan, or groups like those of the training, as the generator
requires. Windows of one size are reconstructed together, each in its own object array; the patterns of a large window
are processed in batches, so memory does not grow with the scan. Then the patch of every position is extracted once and
stitched.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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
from ..data.tensors import CACHE_BYTES, ScanTensors, extent_of, patch_origins_of
from ..errors import ConfigurationError
from ..models.base import Generator, Measurement
from ..physics.forward import PatternBatch, amplitude_update
from ..physics.patches import extract_patches
from ..physics.probe import illumination
from ..types import ReconstructionState
from .progress import ProgressReporter
from .stitching import Stitcher, mask_object

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
        """Reconstruct the windows one after the other and return the state with the stitched object."""
        stitcher = Stitcher(self._shape, self._tensors.device)
        is_single = len(self._windows) == 1 and len(self._windows[0].indices) == 1
        with torch.inference_mode():
            for windows in self._windows:
                batches = _WindowBatches(self._tensors, self._state, windows, self._batch_size)
                objects = self._reconstruct(windows, batches, preview=is_single)
                self._stitch(stitcher, windows, batches, objects)
                if not is_single:
                    self._progress.preview(stitcher.result, self._origin)
                if self._progress.should_stop():
                    break
            result = stitcher.result()
        # A tensor that was made in inference mode cannot enter a computation that is differentiated; a copy can.
        return replace(self._state, object_array=result.clone(), origin=self._origin)

    def _reconstruct(self, windows: Windows, batches: _WindowBatches, *, preview: bool) -> Tensor:
        shape = (len(windows.indices), *windows.shape)
        objects = torch.ones(shape, dtype=torch.complex64, device=self._tensors.device)
        photons = torch.zeros_like(objects.real)
        for batch in batches:
            photons += illumination(batch.probes, batch.patch_origins, windows.shape)
        measured = Measurement(batches.object_update, batches, objects, photons)
        origin = int(windows.origins[0, 0]), int(windows.origins[0, 1])
        for estimate in self._generator.unroll(measured, self._steps):
            objects = estimate
            self._progress.advance()
            if preview:
                self._progress.preview(partial(mask_object, objects[0], photons[0]), origin)
            if self._progress.should_stop():
                break
        return objects

    def _stitch(self, stitcher: Stitcher, windows: Windows, batches: _WindowBatches, objects: Tensor) -> None:
        offsets = torch.from_numpy(windows.origins - np.array(self._origin)).to(objects.device)[:, None]
        for number in range(len(objects)):
            parts = partial(_patches, objects, batches, offsets, number, self._tensors.pattern_shape)
            # The phase is that of the whole overlap of the window: the first pass measures it, the second stitches.
            total = torch.stack([stitcher.overlap(*part) for part in parts()]).sum()
            phase = torch.where(total.abs() > 0, total / total.abs().clamp_min(1e-30), torch.ones_like(total))
            for patches, probes, patch_origins in parts():
                stitcher.add(patches * phase, probes, patch_origins)


def _patches(
    objects: Tensor, batches: _WindowBatches, offsets: Tensor, number: int, shape: tuple[int, int]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield patches, probes and patch origins of one object array, as :meth:`.Stitcher.add` takes them."""
    one = slice(number, number + 1)
    for batch in batches:
        yield (
            extract_patches(objects[one], batch.patch_origins[one], shape),
            batch.probes[one],
            batch.patch_origins[one] + offsets[one],
        )


class _WindowBatches:
    """The patterns of some windows in batches; kept from step to step where memory allows."""

    def __init__(self, tensors: ScanTensors, state: ReconstructionState, windows: Windows, batch_size: int) -> None:
        self._tensors = tensors
        self._state = state
        self._windows = windows
        count = max(1, math.ceil(windows.indices.size / batch_size))
        self._chunks = np.array_split(windows.indices, count, axis=1)
        modes, height, width = state.probe.shape
        fits = windows.indices.size * height * width * (4 + 8 * modes) <= CACHE_BYTES
        self._is_kept = fits or count == 1
        self._kept: list[PatternBatch] | None = None

    def __iter__(self) -> Iterator[PatternBatch]:
        if self._is_kept and self._kept is None:
            self._kept = list(self._make())
        yield from self._make() if self._kept is None else self._kept

    def _make(self) -> Iterator[PatternBatch]:
        origins = torch.from_numpy(self._windows.origins).to(self._tensors.device)[:, None]
        for chunk in self._chunks:
            flat = self._tensors.batch(self._state, chunk.ravel(), (0, 0))
            yield PatternBatch(
                amplitudes=flat.amplitudes.reshape(*chunk.shape, *flat.amplitudes.shape[2:]),
                probes=flat.probes.reshape(*chunk.shape, *flat.probes.shape[2:]),
                patch_origins=flat.patch_origins.reshape(*chunk.shape, 2) - origins,
                good_pixels=flat.good_pixels,
            )

    def object_update(self, objects: Tensor) -> Tensor:
        """Compute the update of object arrays ``(B, h, w)`` complex64 by all patterns of their windows."""
        total = torch.zeros_like(objects)
        for batch in self:
            total += amplitude_update(objects, batch)[0]
        return total
