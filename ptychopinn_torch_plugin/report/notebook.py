"""A reconstruction in a notebook: a picture of it, and what the notebook shows for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..metrics.plots import limits_of, new_figure
from ..metrics.verdict import light_of, verdict
from .images import draw_map

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..types import Reconstruction


def plot(reconstruction: Reconstruction) -> Figure:
    """Draw amplitude and phase of the object and the first mode of the probe; axes in pixels.

    Raises:
        ImportError: matplotlib is not installed or does not work here.
    """
    figure = new_figure(13.0, 4.2)
    covered = reconstruction.coverage
    array = reconstruction.object_array
    images = (
        ('amplitude', np.where(covered, np.abs(array), np.nan), 'gray'),
        ('phase [rad]', np.where(covered, np.angle(array), np.nan), 'twilight'),
        ('probe, mode 1: amplitude', np.abs(reconstruction.probe[0]), 'viridis'),
    )
    for axis, (title, image, colours) in zip(figure.subplots(1, 3), images, strict=True):
        low, high = (-np.pi, np.pi) if colours == 'twilight' else limits_of(image[np.isfinite(image)], False)
        shown = axis.imshow(image, cmap=colours, vmin=low, vmax=high, interpolation='nearest')
        axis.set(title=title, xlabel='x [pixels]', ylabel='y [pixels]')
        axis.set_facecolor('0.85')
        figure.colorbar(shown, ax=axis, shrink=0.85)
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
