"""A reconstruction in a notebook: a picture of it, and what the notebook shows for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..metrics.plots import (
    draw_frc,
    draw_losses,
    draw_modes,
    draw_object,
    draw_positions,
    limits_of,
    new_figure,
    width_of,
)
from ..metrics.verdict import light_of, verdict
from .images import draw_map

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..data.scan import RawScan
    from ..types import Reconstruction


def plot(reconstruction: Reconstruction, scan: RawScan | None = None) -> Figure:
    """Draw object, probe modes, losses and, with the scan, how the positions moved.

    Args:
        reconstruction: the result.
        scan: the scan that was reconstructed: its positions are those before the run, and its pixel size gives the
            scale bars and axes in metres. Without it they are in pixels, and no movement is drawn.

    Raises:
        ImportError: matplotlib is not installed or does not work here.
    """
    pixel_m = None if scan is None else scan.pixel_m
    figure = new_figure(13.0, 8.0)
    axes = figure.subplots(2, 3)
    draw_object(axes[0, :2], reconstruction, reconstruction.coverage, pixel_m)
    draw_modes(axes[0, 2], reconstruction.probe, 'probe', width_of(pixel_m))
    given = reconstruction.positions if scan is None else scan.positions
    draw_positions(axes[1, 0], given, reconstruction.positions, pixel_m)
    draw_losses(axes[1, 1], reconstruction.losses)
    axes[1, 1].set_title('losses')
    if reconstruction.metrics is None or reconstruction.metrics.frc is None:
        axes[1, 2].set_axis_off()
    else:
        draw_frc(axes[1, 2], reconstruction.metrics.frc, pixel_m)
    return figure


def to_html(reconstruction: Reconstruction) -> str:
    """Return amplitude, phase and verdict as HTML."""
    covered, array = reconstruction.coverage, reconstruction.object_array
    amplitude = np.where(covered, np.abs(array), np.nan)
    maps = (
        draw_map('amplitude', 'Amplitude', amplitude, 'gray', limits_of(amplitude[covered], False)),
        draw_map('phase', 'Phase', np.where(covered, np.angle(array), np.nan), 'twilight', (-np.pi, np.pi)),
    )
    metrics = reconstruction.metrics
    height, width = array.shape
    text = f'Reconstruction: {height} x {width} pixels, {len(reconstruction.positions)} positions'
    if metrics is not None:
        text += f'. {verdict(metrics)} [{light_of(metrics.reduced_chi_square)}]'
    pictures = ''.join(
        f'<img src="{one.url}" alt="{one.title}" title="{one.title}" width="320" '
        'style="image-rendering: pixelated; margin-right: 8px">'
        for one in maps
    )
    return f'<div>{pictures}<p>{text}</p></div>'
