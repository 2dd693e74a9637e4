"""A plot of one or more objects side by side: amplitude and phase, on common colour scales."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..metrics.plots import new_figure

Titled = tuple[str, npt.NDArray[np.complexfloating]]


def draw_objects(objects: Sequence[Titled], pixel_m: tuple[float, float], title: str, file: Path) -> None:
    """Draw objects as a PNG: amplitudes above phases (beside them for one object), axes in micrometres.

    Args:
        objects: title and complex ``(h, w)`` array of each; the first one sets the colour scales.
        pixel_m: height and width of a pixel in metres.
        title: title of the whole plot.
        file: PNG file to write.

    Raises:
        ImportError: matplotlib is not installed or does not work here.
    """
    is_single = len(objects) == 1
    figure = new_figure(*((10.4, 4.6) if is_single else (4.6 * len(objects) + 0.8, 8.6)))
    axes = figure.subplots(1, 2).reshape(2, 1) if is_single else figure.subplots(2, len(objects))
    figure.suptitle(title)
    height, width = objects[0][1].shape
    extent = (0.0, width * pixel_m[1] * 1e6, height * pixel_m[0] * 1e6, 0.0)
    # No pattern determines the constant phase: every object is shown relative to its own mean phase.
    rows = [
        ('amplitude', [(name, np.abs(array)) for name, array in objects]),
        ('phase [rad]', [(name, np.angle(array * np.exp(-1j * np.angle(array.sum())))) for name, array in objects]),
    ]
    for row, (label, images) in zip(axes, rows, strict=True):
        low, high = np.percentile(images[0][1], (0.5, 99.5))
        for axis, (name, image) in zip(row, images, strict=True):
            shown = axis.imshow(image, cmap='gray', vmin=low, vmax=high, extent=extent, interpolation='nearest')
            axis.set_title(f'{name}: {label}')
            axis.set_xlabel('x [µm]')
            axis.set_ylabel('y [µm]')
        figure.colorbar(shown, ax=row, shrink=0.8)
    figure.savefig(file, dpi=90)
