"""Inference: a trained network and a scan become an object.

The scan is cut into windows (one window, the whole scan, by default). A window is reconstructed on one canvas; its
patterns pass through in batches, so memory does not grow with the scan. Then every position's patch is cut out once
and stitched.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .config import InferenceConfig
from .data.grouping import compact_windows
from .model.generator import Generator
from .physics.forward import Frames, amplitude_descent
from .physics.frames import gather
from .physics.probe import illumination
from .report import Report
from .stitching import Stitched, Stitcher, cover
from .tensors import CACHE_BYTES, ScanTensors


class WindowGeometry(NamedTuple):
    """A window of a scan: its positions and its canvas on the object grid."""

    indices: npt.NDArray[np.integer]
    """Positions of the scan, ``(C,)``."""
    origin: npt.NDArray[np.integer]
    """Object pixel (y, x) of the first canvas pixel."""
    shape: tuple[int, int]
    """Canvas height and width."""


def windows_of(tensors: ScanTensors, window_size: int) -> list[WindowGeometry]:
    """Cut a scan into compact windows of about ``window_size`` positions; 0 makes one window of all."""
    scan = tensors.scan
    parts = compact_windows(scan.positions, window_size or scan.size)
    return [WindowGeometry(part, *tensors.extent(part)) for part in parts]


class Predictor:
    """A network at work on one scan.

    Args:
        tensors: the scan on its device.
        generator: the network, on the same device.
        steps: canvases that the network yields for every window.
        config: window and batch sizes.
        report: hears of every step and preview, and says when to stop.
    """

    def __init__(
        self, tensors: ScanTensors, generator: Generator, steps: int, config: InferenceConfig, report: Report
    ) -> None:
        self._tensors = tensors
        self._generator = generator
        self._steps = steps
        self._config = config
        self._report = report
        self._origin, self._shape = tensors.extent(np.arange(tensors.scan.size))

    def predict(self) -> Stitched:
        """Reconstruct window after window into one canvas over the whole scan (its origin is the scan's extent)."""
        windows = windows_of(self._tensors, self._config.window_size)
        stitcher = Stitcher(self._shape, self._tensors.device)
        with torch.inference_mode():
            for window in windows:
                batches = _Batches(self._tensors, window, self._config.batch_size)
                canvas = self._solve(window, batches, preview=len(windows) == 1)
                self._add(stitcher, window, batches, canvas)
                if len(windows) > 1:
                    self._report.preview(stitcher.result, self._origin)
                if self._report.should_stop():
                    break
            return stitcher.result()

    def _solve(self, window: WindowGeometry, batches: _Batches, *, preview: bool) -> Tensor:
        canvas = torch.ones((1, *window.shape), dtype=torch.complex64, device=self._tensors.device)
        photons = torch.zeros_like(canvas.real)
        for frames in batches:
            photons += illumination(frames.probes, frames.corners, window.shape)
        for estimate in self._generator.unroll(batches.descend, canvas, photons, self._steps):
            canvas = estimate
            self._report.advance()
            if preview:
                self._report.preview(partial(cover, canvas[0], photons[0]), window.origin)
            if self._report.should_stop():
                break
        return canvas

    def _add(self, stitcher: Stitcher, window: WindowGeometry, batches: _Batches, canvas: Tensor) -> None:
        offset = torch.from_numpy(np.asarray(window.origin - self._origin)).to(canvas.device)
        shape = self._tensors.scan.pattern_shape
        # The turn comes from all of the window's overlap: a first pass measures it, a second one stitches.
        overlaps = [
            stitcher.overlap(gather(canvas, frames.corners, shape), frames.probes, frames.corners + offset)
            for frames in batches
        ]
        total = torch.stack(overlaps).sum()
        turn = torch.where(total.abs() > 0, total / total.abs().clamp_min(1e-30), torch.ones_like(total))
        for frames in batches:
            stitcher.add(gather(canvas, frames.corners, shape) * turn, frames.probes, frames.corners + offset)


class _Batches:
    """The frames of a window in batches; kept between steps where memory allows."""

    def __init__(self, tensors: ScanTensors, window: WindowGeometry, batch_size: int) -> None:
        self._tensors = tensors
        self._window = window
        count = max(1, math.ceil(window.indices.size / batch_size))
        self._chunks = np.array_split(window.indices, count)
        modes, height, width = tensors.probe.shape
        self._keep = window.indices.size * height * width * (4 + 8 * modes) <= CACHE_BYTES
        self._kept: list[Frames] | None = None

    def __iter__(self) -> Iterator[Frames]:
        if self._keep and self._kept is None:
            self._kept = list(self._gather())
        yield from self._gather() if self._kept is None else self._kept

    def _gather(self) -> Iterator[Frames]:
        for chunk in self._chunks:
            yield self._tensors.frames(chunk, self._window.origin)

    def descend(self, canvas: Tensor) -> Tensor:
        """Descent direction of all patterns together, ``(1, h, w)`` complex64."""
        direction = torch.zeros_like(canvas)
        for frames in self:
            direction += amplitude_descent(canvas, frames).direction
        return direction
