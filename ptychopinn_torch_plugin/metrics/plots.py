"""The picture of a judgement (matplotlib, imported here only: never in the process that holds the window)."""

from __future__ import annotations

import io
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .verdict import verdict

if TYPE_CHECKING:
    from ..types import FourierRingCorrelation, Reconstruction, ReconstructionMetrics

Real = npt.NDArray[np.floating]
Extent = tuple[float, float, float, float]

_LIT = 0.05
"""Share of the largest illumination from which on a pixel sets the colour scales."""
_DPI = 80
_ZERO_TO_TOP = 0.7
"""Scales of errors begin at zero unless even their smallest value is near the largest."""


def draw_judgement(
    reconstruction: Reconstruction, judgement: ReconstructionMetrics, pixel_m: tuple[float, float] | None = None
) -> bytes:
    """Draw the object, its uncertainty, the residual maps and the ring correlation.

    Args:
        reconstruction: the object comes from it.
        judgement: its judgement.
        pixel_m: height and width of an object pixel in metres; axes are pixels where it is not known.

    Returns:
        A PNG.
    """
    figure = Figure(figsize=(15.5, 9.0), layout='constrained')
    FigureCanvasAgg(figure)
    figure.suptitle('\n'.join(textwrap.wrap(verdict(judgement), 120)), fontsize=11)
    axes = figure.subplots(2, 3)
    extent, unit = _extent(reconstruction.object_array.shape, pixel_m)
    covered = reconstruction.coverage
    lit = covered & (judgement.photons_map > _LIT * judgement.photons_map.max())
    rows, columns = _box(covered)
    array = reconstruction.object_array * np.exp(-1j * np.angle(reconstruction.object_array[covered].sum()))
    pictures = (
        (axes[0, 0], 'amplitude', np.abs(array), 'gray', False),
        (axes[0, 1], 'phase [rad]', np.angle(array), 'gray', False),
        (axes[0, 2], 'log10 of the uncertainty', np.log10(judgement.uncertainty_map), 'magma', False),
        (axes[1, 0], 'R-factor on the object', judgement.object_r_map, 'magma', True),
    )
    for axis, title, image, colours, is_error in pictures:
        _draw(axis, np.where(covered, image, np.nan), extent, _limits(image[lit], is_error), colours)
        axis.set(title=title, xlabel=f'x [{unit}]', ylabel=f'y [{unit}]')
        axis.set_xlim(*(extent[0] + (extent[1] - extent[0]) * edge / array.shape[1] for edge in columns))
        axis.set_ylim(*(extent[2] * edge / array.shape[0] for edge in rows[::-1]))
    height, width = judgement.detector_r_map.shape
    known = judgement.detector_r_map[np.isfinite(judgement.detector_r_map)]
    detector: Extent = (-0.5 - width // 2, width - width // 2 - 0.5, height - height // 2 - 0.5, -0.5 - height // 2)
    low, high = _limits(known, True)
    # Where hardly a photon falls, the R-factor of noise alone is above 1 and would take the whole scale.
    _draw(axes[1, 1], judgement.detector_r_map, detector, (low, min(high, max(1.0, 2 * low))), 'magma')
    axes[1, 1].set(title='R-factor on the detector', xlabel='pixels from the centre', ylabel='pixels from the centre')
    if judgement.frc is None:
        _draw_distribution(axes[1, 2], judgement)
    else:
        _draw_rings(axes[1, 2], judgement.frc, pixel_m)
    stream = io.BytesIO()
    figure.savefig(stream, dpi=_DPI, format='png')
    return stream.getvalue()


def _draw(axis: Any, image: Real, extent: Extent, limits: tuple[float, float], colours: str) -> None:  # noqa: ANN401
    shown = axis.imshow(
        image, cmap=colours, vmin=limits[0], vmax=limits[1], extent=extent, interpolation='nearest'
    )  # fmt: skip
    axis.set_facecolor('0.85')
    axis.figure.colorbar(shown, ax=axis, shrink=0.85)


def _draw_rings(axis: Any, rings: FourierRingCorrelation, pixel_m: tuple[float, float] | None) -> None:  # noqa: ANN401
    axis.plot(rings.frequencies, rings.correlation, color='C0', label='half scans')
    axis.plot(rings.frequencies, rings.threshold, color='C1', linestyle='--', label='half-bit threshold')
    axis.axhline(0.0, color='0.7', linewidth=0.8)
    title = 'half scans: no resolution'
    if rings.resolution_px is not None:
        axis.axvline(1 / rings.resolution_px, color='0.4', linewidth=0.8)
        title = f'half scans: {rings.resolution_px:.1f} pixels'
        if pixel_m is not None:
            title += f' = {rings.resolution_px * max(pixel_m) * 1e9:.3g} nm'
    axis.set(title=title, xlabel='spatial frequency [cycles/pixel]', ylabel='ring correlation')
    axis.set(xlim=(0, 0.5), ylim=(-0.2, 1.05))
    axis.legend()


def _draw_distribution(axis: Any, judgement: ReconstructionMetrics) -> None:  # noqa: ANN401
    """Without half scans: how many pixels are as uncertain as that."""
    values = judgement.uncertainty_map[np.isfinite(judgement.uncertainty_map)]
    if values.size:
        values = np.sort(values)
        axis.semilogx(values, np.linspace(0, 100, values.size), color='C0')
    axis.set(title='uncertainty of the covered pixels', xlabel='at most', ylabel='pixels [%]')
    axis.grid(alpha=0.3)


def _limits(values: Real, is_error: bool) -> tuple[float, float]:
    """Scale of an image: its bulk, from zero for an error."""
    values = values[np.isfinite(values)]
    if values.size == 0:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(values, (0.5, 99.5)))
    if is_error and low < _ZERO_TO_TOP * high:
        low = 0.0
    return low, high if high > low else low + 1.0


def _extent(shape: tuple[int, ...], pixel_m: tuple[float, float] | None) -> tuple[Extent, str]:
    if pixel_m is None:
        return (0.0, float(shape[1]), float(shape[0]), 0.0), 'pixels'
    return (0.0, shape[1] * pixel_m[1] * 1e6, shape[0] * pixel_m[0] * 1e6, 0.0), 'µm'


def _box(covered: npt.NDArray[np.bool_]) -> tuple[tuple[int, int], tuple[int, int]]:
    """First and last row and column edges of what is covered; the whole array if nothing is."""
    edges = []
    for axis in (1, 0):
        found = np.flatnonzero(covered.any(axis=axis))
        edges.append((int(found[0]), int(found[-1]) + 1) if found.size else (0, covered.shape[1 - axis]))
    return edges[0], edges[1]
