"""Inference: a trained network and a scan become an object.

The scan is cut into windows: one window, the whole scan, or groups like those of the training, as the generator wants
it. Windows of one size are reconstructed together, each on its own canvas; the patterns of a large window pass through
in batches, so memory does not grow with the scan. Then every position's patch is cut out once and stitched.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..config import InferenceConfig
from ..data.grouping import compact_windows, nearest_neighbours
from ..data.tensors import CACHE_BYTES, ScanTensors
from ..errors import ConfigurationError
from ..models.base import Generator, Measurement
from ..physics.forward import Frames, amplitude_descent
from ..physics.patches import gather
from ..physics.probe import illumination
from .progress import Report
from .stitching import Stitched, Stitcher, cover

CANVAS_MULTIPLE = 16
"""Canvas sides of groups are rounded up to this: most then have the same, and are worked on together."""


class Windows(NamedTuple):
    """Windows of one size that are reconstructed at a time: their positions and their canvases on the object grid."""

    indices: npt.NDArray[np.integer]
    """Positions of the scan, ``(B, C)``."""
    origins: npt.NDArray[np.integer]
    """Object pixel (y, x) of the first pixel of each canvas, ``(B, 2)``."""
    shape: tuple[int, int]
    """Height and width of every canvas."""


def rounds_of(tensors: ScanTensors, generator: Generator, trained_size: int, config: InferenceConfig) -> list[Windows]:
    """Cut a scan into the windows that ``generator`` wants.

    Windows are compact and share no position, unless they are anchored: then every position has one, with its nearest
    neighbours, and they are put together as long as their positions are no more than fit into a batch.

    Args:
        tensors: the scan.
        generator: the network.
        trained_size: size of the groups that it was trained on.
        config: window and batch sizes that are asked for.
    """
    scan = tensors.scan
    window_size = generator.window_size(config.window_size, trained_size) or scan.size
    parts = compact_windows(scan.positions, window_size)
    if generator.is_anchored and window_size < scan.size:
        # In the order of the compact windows, so that each overlaps what is stitched already.
        anchors = np.concatenate(parts)
        neighbours = nearest_neighbours(scan.positions, window_size - 1)
        parts = list(np.concatenate([anchors[:, None], neighbours[anchors]], axis=1))
        return _together(tensors, parts, config.batch_size)
    return [_canvases_of(tensors, window[None], multiple=1) for window in parts]


def _together(tensors: ScanTensors, parts: Sequence[npt.NDArray[np.integer]], batch_size: int) -> list[Windows]:
    """Put neighbouring windows of one size together; a window's canvas depends on nothing but itself."""
    alone = [_canvases_of(tensors, window[None], multiple=CANVAS_MULTIPLE) for window in parts]
    rounds = []
    for (_, size, shape), group in groupby(alone, key=lambda one: (*one.indices.shape, one.shape)):
        alike = list(group)
        count = max(1, batch_size // size)
        for chunk in (alike[first : first + count] for first in range(0, len(alike), count)):
            indices, origins = (np.concatenate([one[field] for one in chunk]) for field in (0, 1))
            rounds.append(Windows(indices, origins, shape))
    return rounds


def _canvases_of(tensors: ScanTensors, indices: npt.NDArray[np.integer], *, multiple: int) -> Windows:
    origin, (height, width) = tensors.extent(indices[0])
    return Windows(indices, origin[None], (height + -height % multiple, width + -width % multiple))


def steps_of(generator: Generator, asked: int) -> int:
    """Canvases that ``generator`` shall yield for every window, where 0 asks for its own choice.

    Raises:
        ConfigurationError: it cannot yield so many.
    """
    if generator.most_steps is not None and asked > generator.most_steps:
        raise ConfigurationError(
            f'inference.steps = {asked}: the network of this model makes its patches in {generator.most_steps} step; '
            'set 0, or train a model with the generator "unrolled".'
        )
    return asked or generator.default_steps


class Predictor:
    """A network at work on one scan.

    Args:
        tensors: the scan on its device.
        generator: the network, on the same device.
        rounds: the windows of the scan, as of :func:`rounds_of`.
        steps: canvases that the network yields for every window.
        config: batch size.
        report: hears of every step and preview, and says when to stop.
    """

    def __init__(
        self,
        tensors: ScanTensors,
        generator: Generator,
        rounds: Sequence[Windows],
        steps: int,
        config: InferenceConfig,
        report: Report,
    ) -> None:
        self._tensors = tensors
        self._generator = generator
        self._rounds = rounds
        self._steps = steps
        self._config = config
        self._report = report
        self._origin, self._shape = tensors.extent(np.arange(tensors.scan.size))

    def predict(self) -> Stitched:
        """Reconstruct window after window into one canvas over the whole scan (its origin is the scan's extent)."""
        stitcher = Stitcher(self._shape, self._tensors.device)
        single = len(self._rounds) == 1 and len(self._rounds[0].indices) == 1
        with torch.inference_mode():
            for windows in self._rounds:
                batches = _Batches(self._tensors, windows, self._config.batch_size)
                canvases = self._solve(windows, batches, preview=single)
                self._add(stitcher, windows, batches, canvases)
                if not single:
                    self._report.preview(stitcher.result, self._origin)
                if self._report.should_stop():
                    break
            return stitcher.result()

    def _solve(self, windows: Windows, batches: _Batches, *, preview: bool) -> Tensor:
        shape = (len(windows.indices), *windows.shape)
        canvases = torch.ones(shape, dtype=torch.complex64, device=self._tensors.device)
        photons = torch.zeros_like(canvases.real)
        for frames in batches:
            photons += illumination(frames.probes, frames.patch_origins, windows.shape)
        measured = Measurement(batches.descend, batches, canvases, photons)
        for estimate in self._generator.unroll(measured, self._steps):
            canvases = estimate
            self._report.advance()
            if preview:
                self._report.preview(partial(cover, canvases[0], photons[0]), windows.origins[0])
            if self._report.should_stop():
                break
        return canvases

    def _add(self, stitcher: Stitcher, windows: Windows, batches: _Batches, canvases: Tensor) -> None:
        offsets = torch.from_numpy(windows.origins - self._origin).to(canvases.device)[:, None]
        for number in range(len(canvases)):
            parts = partial(_patches, canvases, batches, offsets, number, self._tensors.scan.pattern_shape)
            # The turn comes from all of the window's overlap: a first pass measures it, a second one stitches.
            total = torch.stack([stitcher.overlap(*part) for part in parts()]).sum()
            turn = torch.where(total.abs() > 0, total / total.abs().clamp_min(1e-30), torch.ones_like(total))
            for patches, probes, patch_origins in parts():
                stitcher.add(patches * turn, probes, patch_origins)


def _patches(
    canvases: Tensor, batches: _Batches, offsets: Tensor, number: int, shape: tuple[int, int]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Patches, probes and patch_origins of one of the canvases, as :meth:`.Stitcher.add` takes them, batch by batch."""
    one = slice(number, number + 1)
    for frames in batches:
        yield (
            gather(canvases[one], frames.patch_origins[one], shape),
            frames.probes[one],
            frames.patch_origins[one] + offsets[one],
        )


class _Batches:
    """The frames of some windows in batches; kept between steps where memory allows."""

    def __init__(self, tensors: ScanTensors, windows: Windows, batch_size: int) -> None:
        self._tensors = tensors
        self._windows = windows
        count = max(1, math.ceil(windows.indices.size / batch_size))
        self._chunks = np.array_split(windows.indices, count, axis=1)
        modes, height, width = tensors.probe.shape
        fits = windows.indices.size * height * width * (4 + 8 * modes) <= CACHE_BYTES
        self._keep = fits or count == 1
        self._kept: list[Frames] | None = None

    def __iter__(self) -> Iterator[Frames]:
        if self._keep and self._kept is None:
            self._kept = list(self._gather())
        yield from self._gather() if self._kept is None else self._kept

    def _gather(self) -> Iterator[Frames]:
        for chunk in self._chunks:
            flat = self._tensors.frames(chunk.ravel(), np.zeros(2, np.int64))
            origins = torch.from_numpy(self._windows.origins).to(self._tensors.device)[:, None]
            yield Frames(
                amplitudes=flat.amplitudes.reshape(*chunk.shape, *flat.amplitudes.shape[2:]),
                probes=flat.probes.reshape(*chunk.shape, *flat.probes.shape[2:]),
                patch_origins=flat.patch_origins.reshape(*chunk.shape, *flat.patch_origins.shape[2:]) - origins,
                good_pixels=flat.good_pixels,
            )

    def descend(self, canvases: Tensor) -> Tensor:
        """Descent direction of all patterns together, ``(B, h, w)`` complex64."""
        direction = torch.zeros_like(canvases)
        for frames in self:
            direction += amplitude_descent(canvases, frames).direction
        return direction
