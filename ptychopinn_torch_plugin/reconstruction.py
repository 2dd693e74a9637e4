"""Inference: a trained network and a scan become an object.

The scan is cut into windows (one window, the whole scan, by default). A window is reconstructed on one canvas; its
patterns pass through in batches, so memory does not grow with the scan. Then every position's patch is cut out once
and stitched.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .config import InferenceConfig
from .data.grouping import compact_windows
from .data.scan import RawScan
from .devices import select_device, use_threads
from .errors import InputError
from .model.generator import Generator
from .observer import Observer, SilentObserver
from .persistence import TrainedModel
from .physics.forward import Frames, amplitude_descent
from .physics.frames import gather
from .physics.probe import illumination
from .stitching import Stitched, Stitcher, cover
from .tensors import ScanTensors
from .types import Reconstruction

logger = logging.getLogger(__name__)

DEFAULT_STEPS_FACTOR = 2
"""More steps than in training still improve the picture: the network was trained to help at every one of them."""

CACHE_BYTES = 2 * 2**30
"""Batches are kept between steps if all of them fit into this; else they are made again at every step."""


class WindowGeometry(NamedTuple):
    """A window of a scan: its positions and its canvas on the object grid."""

    indices: npt.NDArray[np.integer]
    """Positions of the scan, ``(C,)``."""
    origin: npt.NDArray[np.integer]
    """Object pixel (y, x) of the first canvas pixel."""
    shape: tuple[int, int]
    """Canvas height and width."""


def reconstruct(
    scan: RawScan, model: TrainedModel, config: InferenceConfig, observer: Observer | None = None
) -> Reconstruction:
    """Reconstruct ``scan`` with ``model``.

    Args:
        scan: the validated scan; its object guess only says which grid the object is wanted on.
        model: what training wrote.
        config: settings of the inference.
        observer: hears of progress and previews, and may ask to stop: the object so far is then returned.

    Returns:
        Object on the scan's own grid, coverage, probe in the unitary convention, and the losses of the training.

    Raises:
        InputError: the model's probe was asked for and does not fit the patterns.
    """
    observer = observer or SilentObserver()
    use_threads(config.threads)
    device = select_device(config.accelerator)
    tensors = ScanTensors(scan, device, probe=_chosen_probe(scan, model, config))
    generator = model.build().to(device)
    steps = config.steps or DEFAULT_STEPS_FACTOR * model.config.model.steps
    windows = _windows(tensors, config.window_size)
    logger.info(
        'Reconstructing %s (%d positions) with %s: %d steps on %s.',
        scan.name,
        scan.size,
        device,
        steps,
        'one canvas' if len(windows) == 1 else f'each of {len(windows)} windows',
    )
    run = _Run(tensors, generator, config, steps, len(windows) * steps, observer)
    with torch.inference_mode():
        stitched = run.stitch(windows)
    object_array, coverage = run.on_object_grid(stitched)
    logger.info(
        'The scan lights %.0f %% of the object grid; the rest stays 1.', 100 * float(coverage.mean(dtype=np.float64))
    )
    return Reconstruction(
        object_array=object_array, coverage=coverage, probe=tensors.probe.cpu().numpy(), losses=model.losses
    )


def _chosen_probe(
    scan: RawScan, model: TrainedModel, config: InferenceConfig
) -> npt.NDArray[np.complexfloating] | None:
    if not config.use_model_probe:
        return None
    if model.probe.shape[-2:] != scan.pattern_shape:
        raise InputError(
            f'The probe of the model has {model.probe.shape[-2]} x {model.probe.shape[-1]} pixels and the patterns of '
            f'{scan.name} have {scan.pattern_shape[0]} x {scan.pattern_shape[1]}: switch off "Use the probe '
            'of the model".'
        )
    return model.probe


def _windows(tensors: ScanTensors, window_size: int) -> list[WindowGeometry]:
    scan = tensors.scan
    parts = compact_windows(scan.positions, window_size or scan.size)
    return [WindowGeometry(part, *tensors.extent(part)) for part in parts]


class _Run:
    """One reconstruction under way: what its steps share."""

    def __init__(
        self,
        tensors: ScanTensors,
        generator: Generator,
        config: InferenceConfig,
        steps: int,
        goal: int,
        observer: Observer,
    ) -> None:
        self._tensors = tensors
        self._generator = generator
        self._config = config
        self._steps = steps
        self._goal = goal
        self._done = 0
        self._observer = observer
        everything = np.arange(tensors.scan.size)
        self._origin, self._shape = tensors.extent(everything)

    def stitch(self, windows: list[WindowGeometry]) -> Stitched:
        """Reconstruct window after window into one canvas over the whole scan."""
        stitcher = Stitcher(self._shape, self._tensors.device)
        for window in windows:
            batches = _Batches(self._tensors, window, self._config.batch_size)
            canvas = self._solve(window, batches, preview=len(windows) == 1)
            self._add(stitcher, window, batches, canvas)
            if len(windows) > 1:
                self._preview(stitcher.result())
            if self._observer.should_stop():
                break
        return stitcher.result()

    def on_object_grid(self, stitched: Stitched) -> tuple[npt.NDArray[np.complex64], npt.NDArray[np.bool_]]:
        """Place a stitched canvas on the scan's object grid; what lies outside of the grid is cut off."""
        shape = self._tensors.scan.object_shape
        object_array = np.ones(shape, dtype=np.complex64)
        coverage = np.zeros(shape, dtype=np.bool_)
        first = np.maximum(self._origin, 0)
        last = np.minimum(self._origin + np.array(self._shape), np.array(shape))
        there = tuple(slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
        here = tuple(slice(int(a), int(b)) for a, b in zip(first - self._origin, last - self._origin, strict=True))
        object_array[there] = stitched.canvas[here].cpu().numpy()
        coverage[there] = stitched.coverage[here].cpu().numpy()
        return object_array, coverage

    def _solve(self, window: WindowGeometry, batches: _Batches, *, preview: bool) -> Tensor:
        start = torch.ones((1, *window.shape), dtype=torch.complex64, device=self._tensors.device)
        photons = torch.zeros_like(start.real)
        for frames in batches:
            photons += illumination(frames.probes, frames.corners, window.shape)
        canvas = start
        interval = self._config.preview_interval
        for step, estimate in enumerate(self._generator.unroll(batches.descend, start, photons, self._steps), start=1):
            canvas = estimate
            self._done += 1
            self._observer.on_progress(self._done, self._goal)
            if preview and interval and step % interval == 0 and step < self._steps:
                self._preview(cover(canvas[0], photons[0]))
            if self._observer.should_stop():
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

    def _preview(self, stitched: Stitched) -> None:
        if self._config.preview_interval:
            self._observer.on_preview(self.on_object_grid(stitched)[0])


class _Batches:
    """The frames of a window in batches; kept between steps where memory allows."""

    def __init__(self, tensors: ScanTensors, window: WindowGeometry, batch_size: int) -> None:
        self._tensors = tensors
        self._window = window
        count = max(1, -(-window.indices.size // batch_size))
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
