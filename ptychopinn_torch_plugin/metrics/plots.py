"""The plot of the metrics, and the figures that all plots of this package are drawn on.

matplotlib is imported when a figure is made: never in the process that holds the window.
"""

from __future__ import annotations

import io
import logging
import math
import os
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..storage.checked_files import printable
from .run import LOSSES, TITLES, Run, changed_settings, date_and_time, duration, mode_shares, position_shifts, scale_bar
from .verdict import verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..config import Config
    from ..types import FourierRingCorrelation, LossRecord, Reconstruction, ReconstructionMetrics

logger = logging.getLogger(__name__)

Real = npt.NDArray[np.floating]

_ILLUMINATED = 0.05
"""Share of the largest number of photons from which on a pixel counts for the colour scales."""
_DPI = 150
_MODES_SHOWN = 16
_MOVED_PX = 1e-6
"""Movement of a position, in pixels, that is drawn."""
_ARROW_SHARE = 0.06
"""Length of the longest arrow over the extent of the scan."""
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
    reconstruction: Reconstruction,
    metrics: ReconstructionMetrics,
    pixel_m: tuple[float, float] | None = None,
    run: Run | None = None,
) -> bytes:
    """Draw object, probe, positions, losses, uncertainty, residual maps and Fourier ring correlation on one page.

    Args:
        reconstruction: the object that is drawn.
        metrics: its metrics.
        pixel_m: height and width of an object pixel in metres; lengths are in pixels where it is not known.
        run: what was run, for the name of the scan, date and settings, and probe and positions before the run; None
            leaves these out.

    Returns:
        The content of a PNG file.

    Raises:
        ImportError: matplotlib is not installed or does not work here.
    """
    figure = new_figure(18.0, 13.2)
    figure.suptitle(_heading(metrics, run), fontsize=11, linespacing=1.4)
    axes = figure.subplots(3, 4)
    _draw_object_maps(axes.ravel()[:4], reconstruction, metrics, pixel_m)
    pixel = width_of(pixel_m)
    probe = axes[1]
    draw_modes(probe[0], reconstruction.probe, 'probe after', pixel)
    _draw_probe_phase(probe[1], reconstruction.probe[0], 'probe after: phase of mode 1 [rad]', pixel)
    if run is None:
        probe[2].set_axis_off()
    else:
        draw_modes(probe[2], run.scan.probe, 'probe before', pixel)
    _draw_detector(probe[3], metrics.detector_r_map)
    positions, losses, coverage, curve = axes[2]
    given = reconstruction.positions if run is None else run.scan.positions
    draw_positions(positions, given, reconstruction.positions, pixel_m)
    draw_losses(losses, reconstruction.losses)
    losses.set_title('losses' if run is None else LOSSES[run.kind])
    _draw_coverage(coverage, reconstruction, metrics, pixel)
    if metrics.frc is None:
        _draw_distribution(curve, metrics)
    else:
        draw_frc(curve, metrics.frc, pixel_m)
    if run is not None:
        figure.supxlabel(_settings_in_words(run.config), fontsize=8, linespacing=1.4)
    return _png(figure)


def draw_probe(probe: npt.NDArray[np.complexfloating], pixel_m: tuple[float, float] | None = None) -> bytes:
    """Draw the amplitudes of the probe modes ``(M, H, W)``, and the phase of the first one.

    Returns:
        The content of a PNG file.

    Raises:
        ImportError: matplotlib is not installed or does not work here.
    """
    figure = new_figure(9.0, 4.2)
    axes = figure.subplots(1, 2)
    pixel = width_of(pixel_m)
    draw_modes(axes[0], probe, 'probe', pixel)
    _draw_probe_phase(axes[1], probe[0], 'phase of mode 1 [rad]', pixel)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, dpi=_DPI, format='png')
    return stream.getvalue()


def _heading(metrics: ReconstructionMetrics, run: Run | None) -> str:
    lines = textwrap.wrap(verdict(metrics), 190)
    if run is not None:
        stopped = ', stopped early' if run.is_stopped else ''
        lines.insert(
            0,
            f'{textwrap.shorten(printable(run.scan.name), 100)}  ·  {TITLES[run.kind]}  ·  '
            f'{date_and_time(run.started)}  ·  {duration(run.seconds)}{stopped}',
        )
    return _literal('\n'.join(lines))


def _settings_in_words(config: Config) -> str:
    changed = [f'{item["name"]} = {printable(str(item["value"]))}' for item in changed_settings(config)]
    text = f'Settings that differ from the defaults: {", ".join(changed)}' if changed else 'All settings: default'
    return _literal('\n'.join(textwrap.wrap(text, 230, max_lines=4, placeholder=' ...')))


def _literal(text: str) -> str:
    """Return text in which matplotlib finds no formula."""
    return text.replace('$', r'\$')


def _draw_object_maps(
    axes: Sequence[Any],
    reconstruction: Reconstruction,
    metrics: ReconstructionMetrics,
    pixel_m: tuple[float, float] | None,
) -> None:
    covered = reconstruction.coverage
    lit = covered & (metrics.photons_map > _ILLUMINATED * metrics.photons_map.max())
    draw_object(axes[:2], reconstruction, lit, pixel_m)
    images = (
        ('uncertainty', metrics.uncertainty_map, 'cividis', limits_of(metrics.uncertainty_map[lit], False), True),
        ('R-factor on the object', metrics.object_r_map, 'magma', limits_of(metrics.object_r_map[lit], True), False),
    )
    for axis, (title, image, colours, limits, is_logarithmic) in zip(axes[2:], images, strict=True):
        shown = cropped(np.where(covered, image, np.nan), covered)
        _draw(axis, shown, limits, colours, is_logarithmic=is_logarithmic)
        axis.set(title=title)
        _draw_bar(axis, shown.shape[1], width_of(pixel_m))


def draw_object(
    axes: Sequence[Any],
    reconstruction: Reconstruction,
    lit: npt.NDArray[np.bool_],
    pixel_m: tuple[float, float] | None,
) -> None:
    """Draw amplitude and phase of the object; what is not covered is hatched.

    Args:
        axes: two places to draw.
        reconstruction: has object and coverage.
        lit: where the values set the colours, ``(h, w)``.
        pixel_m: height and width of an object pixel in metres, for the scale bars; None draws them in pixels.
    """
    covered = reconstruction.coverage
    array = reconstruction.object_array * np.exp(-1j * np.angle(reconstruction.object_array[covered].sum()))
    amplitude, phase = np.abs(array), np.angle(array)
    low, high = limits_of(phase[lit], False)
    is_narrow = high - low < np.pi
    limits = (low, high) if is_narrow else (-np.pi, np.pi)
    images = (
        ('amplitude', amplitude, 'gray', limits_of(amplitude[lit], False)),
        ('phase [rad]', phase, 'gray' if is_narrow else 'twilight', limits),
    )
    for axis, (title, image, colours, span) in zip(axes, images, strict=True):
        shown = cropped(np.where(covered, image, np.nan), covered)
        _draw(axis, shown, span, colours)
        axis.set(title=title)
        _draw_bar(axis, shown.shape[1], width_of(pixel_m))


def width_of(pixel_m: tuple[float, float] | None) -> tuple[float, str]:
    """Return the width of a pixel and its unit."""
    return (1.0, 'px') if pixel_m is None else (pixel_m[1], 'm')


def _draw_coverage(
    axis: Any,  # noqa: ANN401
    reconstruction: Reconstruction,
    metrics: ReconstructionMetrics,
    pixel: tuple[float, str],
) -> None:
    covered = reconstruction.coverage
    photons = cropped(np.where(covered & (metrics.photons_map > 0), metrics.photons_map, np.nan), covered)
    _draw(axis, photons, limits_of(photons, False), 'viridis', is_logarithmic=True)
    axis.set(title='coverage: photons per pixel')
    _draw_bar(axis, photons.shape[1], pixel)


def draw_modes(
    axis: Any,  # noqa: ANN401 - matplotlib's axes
    probe: npt.NDArray[np.complexfloating],
    title: str,
    pixel: tuple[float, str],
) -> None:
    """Draw the amplitudes of the probe modes side by side, each over its largest value, with their shares.

    Args:
        axis: where to draw.
        probe: modes ``(M, H, W)``; the first sixteen are shown.
        title: title of the picture.
        pixel: width of a pixel and its unit, for the scale bar.
    """
    modes = np.abs(probe[:_MODES_SHOWN]).astype(np.float64)
    height, width = modes.shape[1:]
    columns = math.ceil(math.sqrt(len(modes)))
    sheet = np.full((math.ceil(len(modes) / columns) * height, columns * width), np.nan)
    for number, (mode, share) in enumerate(zip(modes, mode_shares(probe), strict=False)):
        y, x = number // columns * height, number % columns * width
        sheet[y : y + height, x : x + width] = mode / (float(mode.max()) or 1.0)
        axis.text(x + 0.04 * width, y + 0.08 * height, f'{100 * share:.1f} %', color='w', fontsize=8, va='center')
    _draw(axis, sheet, (0.0, 1.0), 'viridis')
    count = f'{len(probe)} modes' if len(probe) > 1 else '1 mode'
    axis.set(title=f'{title}: amplitude, {count}')
    _draw_bar(axis, sheet.shape[1], pixel)


def _draw_probe_phase(
    axis: Any,  # noqa: ANN401
    mode: npt.NDArray[np.complexfloating],
    title: str,
    pixel: tuple[float, str],
) -> None:
    amplitude = np.abs(mode)
    phase = np.where(amplitude > _ILLUMINATED * amplitude.max(), np.angle(mode), np.nan)
    _draw(axis, phase, (-np.pi, np.pi), 'twilight')
    axis.set(title=title)
    _draw_bar(axis, phase.shape[1], pixel)


def draw_positions(
    axis: Any,  # noqa: ANN401 - matplotlib's axes
    given: npt.NDArray[np.float64],
    found: npt.NDArray[np.float64],
    pixel_m: tuple[float, float] | None,
) -> None:
    """Draw the positions and, as arrows, how they moved beyond their common shift.

    Args:
        axis: where to draw.
        given: positions before the run, ``(n, 2)`` as (y, x), object pixels.
        found: positions after the run.
        pixel_m: height and width of an object pixel in metres; axes are in pixels where it is not known.
    """
    unit, factor = ('pixels', np.ones(2)) if pixel_m is None else ('µm', np.array(pixel_m) * 1e6)
    shifts = position_shifts(given, found)
    distances = np.hypot(shifts[:, 0], shifts[:, 1])
    places = given * factor
    dot = float(np.clip(8000 / len(places), 2.0, 30.0))
    shown = axis.scatter(places[:, 1], places[:, 0], c=distances, s=dot, cmap='viridis', vmin=0)
    axis.figure.colorbar(shown, ax=axis, shrink=0.85, label='moved by [pixels]')
    longest, extent = float(distances.max()), float(np.ptp(places, axis=0).max())
    title = 'positions: as given'
    if longest > _MOVED_PX:
        wanted = _ARROW_SHARE * extent / float(np.hypot(*(shifts * factor).T).max())
        enlarged = max(1.0, float(f'{wanted:.1g}')) if extent > 0 else 1.0
        axis.quiver(
            places[:, 1], places[:, 0], *(shifts * factor * enlarged).T[::-1],
            angles='xy', scale_units='xy', scale=1, color='C3', width=0.003,
        )  # fmt: skip
        title = f'positions: movement, {enlarged:g} times enlarged'
    axis.set(xlabel=f'x [{unit}]', ylabel=f'y [{unit}]', aspect='equal', title=title)
    axis.invert_yaxis()


def draw_losses(axis: Any, losses: Sequence[LossRecord]) -> None:  # noqa: ANN401 - matplotlib's axes
    """Draw the losses of the epochs, dimensionless, those of held-out positions as a second curve."""
    if losses:
        axis.plot([record.epoch for record in losses], [record.training for record in losses], '.-', label='training')
    held = [(record.epoch, record.validation) for record in losses if record.validation is not None]
    if held:
        axis.plot(*zip(*held, strict=True), '.-', label='validation (held-out positions)')
        axis.legend()
    axis.axhline(1.0, color='0.6', linewidth=0.8, linestyle=':')
    axis.set(xlabel='epoch', ylabel='mean deviance per pixel', yscale='log')
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3, which='both')


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


def _draw(
    axis: Any,  # noqa: ANN401
    image: Real,
    limits: tuple[float, float],
    colours: str,
    *,
    is_logarithmic: bool = False,
) -> None:
    from matplotlib.colors import LogNorm, Normalize

    low, high = limits
    norm = LogNorm(max(low, high * 1e-6), high) if is_logarithmic and high > 0 else Normalize(low, high)
    shown = axis.imshow(image, cmap=colours, norm=norm, interpolation='nearest')
    axis.set_facecolor('0.92')
    axis.patch.set(hatch='////', edgecolor='0.78')  # what is not known does not look like data
    axis.set(xticks=[], yticks=[])
    axis.figure.colorbar(shown, ax=axis, shrink=0.85)


def _draw_bar(axis: Any, width_px: int, pixel: tuple[float, str]) -> None:  # noqa: ANN401
    """Draw a scale bar with its length into the lower left corner of a picture."""
    from matplotlib.patheffects import withStroke

    length, text = scale_bar(width_px, *pixel)
    begin, outline = 0.04 * width_px, [withStroke(linewidth=6.0, foreground='w')]
    across = axis.get_xaxis_transform()  # x in pixels, y as a share of the height
    axis.plot(
        [begin, begin + length], [0.05, 0.05], 'k', linewidth=4.0, solid_capstyle='butt', transform=across,
        path_effects=outline, scalex=False, scaley=False,
    )  # fmt: skip
    axis.text(
        begin + length / 2, 0.07, text, ha='center', va='bottom', transform=across,
        path_effects=[withStroke(linewidth=3.0, foreground='w')],
    )  # fmt: skip


def _draw_detector(axis: Any, r_map: Real) -> None:  # noqa: ANN401
    low, high = limits_of(r_map, True)
    # Where almost no photons arrive, photon noise alone gives R-factors above 1, which would set the whole scale.
    _draw(axis, r_map, (low, min(high, max(1.0, 2 * low))), 'magma')
    axis.set(title='R-factor on the detector')
    _draw_bar(axis, r_map.shape[1], (1.0, 'px'))


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


def bounding_box(covered: npt.NDArray[np.bool_]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return first and last edge of the covered rows and columns; those of the whole array if nothing is covered."""
    edges = []
    for axis in (1, 0):
        found = np.flatnonzero(covered.any(axis=axis))
        edges.append((int(found[0]), int(found[-1]) + 1) if found.size else (0, covered.shape[1 - axis]))
    return edges[0], edges[1]


def cropped(array: Real, covered: npt.NDArray[np.bool_]) -> Real:
    """Return the part of ``array`` in the bounding box of ``covered``."""
    rows, columns = bounding_box(covered)
    return array[rows[0] : rows[1], columns[0] : columns[1]]
