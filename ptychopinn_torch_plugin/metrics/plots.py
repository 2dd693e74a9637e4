"""The plot of the metrics, and the figures that all plots of this package are drawn on.

matplotlib is imported when a figure is made: never in the process that holds the window.
"""

from __future__ import annotations

import io
import logging
import os
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .verdict import verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..types import FourierRingCorrelation, Reconstruction, ReconstructionMetrics

logger = logging.getLogger(__name__)

Real = npt.NDArray[np.floating]
Extent = tuple[float, float, float, float]

_ILLUMINATED = 0.05
"""Share of the largest number of photons from which on a pixel counts for the colour scales."""
_DPI = 110
_ZERO_TO_TOP = 0.7
"""Scales of errors begin at zero unless even their smallest value is near the largest."""


def new_figure(width: float, height: float) -> Figure:
    """Return a figure of ``width`` by ``height`` inches that is drawn without a screen.

    Raises:
        ImportError: matplotlib is not installed or does not work here.
    """
    import_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout='constrained')
    FigureCanvasAgg(figure)
    return figure


def draw_metrics(
    reconstruction: Reconstruction, metrics: ReconstructionMetrics, pixel_m: tuple[float, float] | None = None
) -> bytes:
    """Draw the object, its uncertainty, the residual maps and the Fourier ring correlation.

    Args:
        reconstruction: the object that is drawn.
        metrics: its metrics.
        pixel_m: height and width of an object pixel in metres; axes are in pixels where it is not known.

    Returns:
        The content of a PNG file.

    Raises:
        ImportError: matplotlib is not installed or does not work here.
    """
    figure = new_figure(15.5, 9.0)
    figure.suptitle('\n'.join(textwrap.wrap(verdict(metrics), 120)), fontsize=11)
    axes = figure.subplots(2, 3)
    extent, unit = _extent(reconstruction.object_array.shape, pixel_m)
    covered = reconstruction.coverage
    illuminated = covered & (metrics.photons_map > _ILLUMINATED * metrics.photons_map.max())
    rows, columns = bounding_box(covered)
    array = reconstruction.object_array * np.exp(-1j * np.angle(reconstruction.object_array[covered].sum()))
    with np.errstate(divide='ignore'):
        log_uncertainty = np.log10(metrics.uncertainty_map)
    images = (
        (axes[0, 0], 'amplitude', np.abs(array), 'gray', False),
        (axes[0, 1], 'phase [rad]', np.angle(array), 'gray', False),
        (axes[0, 2], 'log10 of the uncertainty', log_uncertainty, 'magma', False),
        (axes[1, 0], 'R-factor on the object', metrics.object_r_map, 'magma', True),
    )
    for axis, title, image, colours, is_error in images:
        _draw(axis, np.where(covered, image, np.nan), extent, limits_of(image[illuminated], is_error), colours)
        axis.set(title=title, xlabel=f'x [{unit}]', ylabel=f'y [{unit}]')
        axis.set_xlim(*(extent[0] + (extent[1] - extent[0]) * edge / array.shape[1] for edge in columns))
        axis.set_ylim(*(extent[2] * edge / array.shape[0] for edge in rows[::-1]))
    _draw_detector(axes[1, 1], metrics.detector_r_map)
    if metrics.frc is None:
        _draw_distribution(axes[1, 2], metrics)
    else:
        draw_frc(axes[1, 2], metrics.frc, pixel_m)
    stream = io.BytesIO()
    figure.savefig(stream, dpi=_DPI, format='png')
    return stream.getvalue()


def import_matplotlib() -> None:
    """Import matplotlib, also where ``MPLBACKEND`` names a backend that is not installed, on which its import fails.

    Notebooks pass such a backend on to the processes they start. It is left as it is for whoever plots to a screen.
    """
    backend = os.environ.pop('MPLBACKEND', None)
    try:
        import matplotlib as mpl
    except (OSError, RuntimeError) as error:  # neither a home nor a temporary folder for its settings
        raise ImportError(str(error), name='matplotlib') from error
    finally:
        if backend is not None:
            os.environ['MPLBACKEND'] = backend
    if backend:
        try:
            mpl.rcParams['backend'] = backend
        except ValueError as error:
            logger.debug('MPLBACKEND is ignored: %s', error)


def _draw(axis: Any, image: Real, extent: Extent, limits: tuple[float, float], colours: str) -> None:  # noqa: ANN401
    shown = axis.imshow(
        image, cmap=colours, vmin=limits[0], vmax=limits[1], extent=extent, interpolation='nearest'
    )  # fmt: skip
    axis.set_facecolor('0.92')
    axis.patch.set(hatch='////', edgecolor='0.78')  # what is not known does not look like data
    axis.figure.colorbar(shown, ax=axis, shrink=0.85)


def _draw_detector(axis: Any, r_map: Real) -> None:  # noqa: ANN401
    height, width = r_map.shape
    extent: Extent = (-0.5 - width // 2, width - width // 2 - 0.5, height - height // 2 - 0.5, -0.5 - height // 2)
    low, high = limits_of(r_map, True)
    # Where almost no photons arrive, photon noise alone gives R-factors above 1, which would set the whole scale.
    _draw(axis, r_map, extent, (low, min(high, max(1.0, 2 * low))), 'magma')
    axis.set(title='R-factor on the detector', xlabel='pixels from the centre', ylabel='pixels from the centre')


def draw_frc(axis: Any, frc: FourierRingCorrelation, pixel_m: tuple[float, float] | None) -> None:  # noqa: ANN401
    """Draw the Fourier ring correlation of two half scans, and the resolution as title."""
    axis.plot(frc.frequencies, frc.correlation, color='C0', label='half scans')
    axis.plot(frc.frequencies, frc.threshold, color='C1', linestyle='--', label='half-bit threshold')
    axis.axhline(0.0, color='0.7', linewidth=0.8)
    title = 'half scans: no resolution'
    if frc.resolution_px is not None:
        axis.axvline(1 / frc.resolution_px, color='0.4', linewidth=0.8)
        title = f'half scans: {frc.resolution_px:.1f} pixels'
        if pixel_m is not None:
            title += f' = {frc.resolution_px * max(pixel_m) * 1e9:.3g} nm'
    axis.set(title=title, xlabel='spatial frequency [cycles/pixel]', ylabel='Fourier ring correlation')
    axis.set(xlim=(0, 0.5), ylim=(-0.2, 1.05))
    axis.legend()


def _draw_distribution(axis: Any, metrics: ReconstructionMetrics) -> None:  # noqa: ANN401
    """Draw the cumulative distribution of the uncertainty, for reconstructions without half scans."""
    values = metrics.uncertainty_map[np.isfinite(metrics.uncertainty_map)]
    if values.size:
        values = np.sort(values)
        axis.semilogx(values, np.linspace(0, 100, values.size), color='C0')
    axis.set(title='uncertainty of the covered pixels', xlabel='at most', ylabel='pixels [%]')
    axis.grid(alpha=0.3)


def limits_of(values: Real, is_error: bool) -> tuple[float, float]:
    """Return the limits of a colour scale: those of 99 % of the finite values, from zero for an error."""
    values = values[np.isfinite(values)]
    if values.size == 0:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(values, (0.5, 99.5)))
    if is_error and low < _ZERO_TO_TOP * high:
        low = 0.0
    return low, high if high > low else low + 1.0


def _extent(shape: tuple[int, ...], pixel_m: tuple[float, float] | None) -> tuple[Extent, str]:
    """Return the edges of an object array and their unit."""
    if pixel_m is None:
        return (0.0, float(shape[1]), float(shape[0]), 0.0), 'pixels'
    return (0.0, shape[1] * pixel_m[1] * 1e6, shape[0] * pixel_m[0] * 1e6, 0.0), 'µm'


def bounding_box(covered: npt.NDArray[np.bool_]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return first and last edge of the covered rows and columns; those of the whole array if nothing is covered."""
    edges = []
    for axis in (1, 0):
        found = np.flatnonzero(covered.any(axis=axis))
        edges.append((int(found[0]), int(found[-1]) + 1) if found.size else (0, covered.shape[1 - axis]))
    return edges[0], edges[1]
