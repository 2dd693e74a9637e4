"""The measured scan of APS 26-ID, from raw patterns and positions alone: geometry found, then refined and drawn."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageSequence

from ptychopinn_torch_plugin.config import parse_config
from ptychopinn_torch_plugin.data.io.conversion import BeamGeometry
from ptychopinn_torch_plugin.engines.pipeline import refine
from ptychopinn_torch_plugin.inspection.apply import Changes, changed_scan
from ptychopinn_torch_plugin.inspection.inspect import inspect
from ptychopinn_torch_plugin.inspection.reading import read_measurement
from ptychopinn_torch_plugin.metrics.plots import new_figure

RAW_FILE = 'test235_truncated.npz'
PREDICTION_FILE = 'ptychonn_gold_pred_phase.tiff'
NOMINAL = BeamGeometry(photon_energy_ev=1e4, detector_distance_m=0.9085, detector_pixel_m=(55e-6, 55e-6))
"""Energy and distance are not published; these give the object pixel of 8 nm of 256 x 256 patterns."""
EPOCHS = 150
SHOWN = (0, 7, 14)
"""Patterns whose predictions are drawn."""

Pixels = npt.NDArray[np.floating]


def run_aps26id(folder: Path, picture: Path | None, threads: int) -> Iterator[str]:
    """Inspect and refine the scan in ``folder``; yield lines; draw the phase beside the prediction of PtychoNN."""
    torch.set_num_threads(threads)
    device = torch.device('cpu')
    begun, spent = time.monotonic(), time.process_time()
    found = inspect(read_measurement(folder / RAW_FILE, NOMINAL), device)
    yield f'{time.monotonic() - begun:.0f} s, {time.process_time() - spent:.0f} s of CPU time, {threads} threads'
    for key in ('orientation', 'defocus', 'aperture', 'modes'):
        yield next(item.text for item in found.report.findings if item.key == key)
    changes = Changes.of(found)
    scan, geometry = changed_scan(found.measurement, changes, changes.usual, device)
    config = parse_config({'refinement': {'refine_epochs': EPOCHS}, 'inference': {'threads': threads}})
    begun = time.monotonic()
    result = refine(scan, config)
    metrics = result.metrics
    if metrics is None:
        raise RuntimeError('The refinement has no metrics.')
    verdict = '' if metrics.credibility is None else f'; {metrics.credibility.colour}: {metrics.credibility.sentence}'
    yield (
        f'R {metrics.r_factor:.4f} (noise {metrics.noise_r_factor:.4f}), {len(scan.probe)} modes, {EPOCHS} epochs, '
        f'{time.monotonic() - begun:.0f} s{verdict}'
    )
    if picture is not None and geometry.object_pixel_m is not None:
        predictions = [np.asarray(page) for page in ImageSequence.Iterator(Image.open(folder / PREDICTION_FILE))]
        _draw(picture, result.object_array, result.positions, predictions, geometry.object_pixel_m[0])
        yield f'The picture is {picture}.'


def _draw(
    file: Path,
    object_array: npt.NDArray[np.complexfloating],
    positions: Pixels,
    predictions: list[Pixels],
    pixel: float,
) -> None:
    """Draw the whole phase, and below it single fields beside the predictions of PtychoNN for their patterns."""
    phase = np.angle(object_array * np.exp(-1j * np.angle(object_array.sum())))
    figure = new_figure(10.4, 3.4 * (1 + len(SHOWN)) / 1.6)
    grid = figure.add_gridspec(len(SHOWN), 4)
    axis = figure.add_subplot(grid[:, :2])
    low, high = np.percentile(phase, (1, 99))
    side = math.ceil(max(phase.shape) * pixel * 1e6 * 10) / 10
    extent = (0.0, phase.shape[1] * pixel * 1e6, phase.shape[0] * pixel * 1e6, 0.0)
    axis.imshow(phase, cmap='gray', vmin=low, vmax=high, extent=extent)
    axis.set_title(f'this package, all patterns: phase [rad], {side:.1f} µm')
    axis.set_xlabel('x [µm]')
    axis.set_ylabel('y [µm]')
    for row, number in enumerate(SHOWN):
        half = predictions[number].shape[0] // 2
        y, x = (round(value) for value in positions[number])
        part = phase[max(y - half, 0) : y + half, max(x - half, 0) : x + half]
        for column, (name, image) in enumerate((('this package', part), ('PtychoNN', predictions[number]))):
            cell = figure.add_subplot(grid[row, 2 + column])
            cell.imshow(image, cmap='gray', vmin=np.percentile(image, 1), vmax=np.percentile(image, 99))
            cell.set_title(f'{name}, pattern {number}')
            cell.set_axis_off()
    figure.savefig(file, dpi=90)
