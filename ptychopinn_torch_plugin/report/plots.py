"""The curves of a report, drawn by matplotlib."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..metrics.plots import draw_frc, new_figure
from .facts import position_shifts
from .images import png_url

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..types import FourierRingCorrelation, Reconstruction
    from .run import Run

_DPI = 130
_SIZE = (6.2, 4.2)
_ARROW_SHARE = 0.06
"""Length of the longest arrow over the extent of the scan."""


def plot_losses(reconstruction: Reconstruction) -> str:
    """Draw the losses of the epochs, dimensionless; return the ``data:`` URL of the picture."""
    figure = new_figure(*_SIZE)
    axis = figure.subplots()
    epochs = [record.epoch for record in reconstruction.losses]
    axis.plot(epochs, [record.training for record in reconstruction.losses], color='C0', label='training')
    held = [(record.epoch, record.validation) for record in reconstruction.losses if record.validation is not None]
    if held:
        axis.plot(*zip(*held, strict=True), color='C1', label='validation')
        axis.legend()
    axis.axhline(1.0, color='0.6', linewidth=0.8, linestyle=':')
    axis.set(xlabel='epoch', ylabel='mean deviance per pixel', yscale='log')
    axis.grid(alpha=0.3, which='both')
    return _url(figure)


def plot_frc(frc: FourierRingCorrelation, pixel_m: tuple[float, float] | None) -> str:
    """Draw the Fourier ring correlation of the half scans; return the ``data:`` URL of the picture."""
    figure = new_figure(*_SIZE)
    draw_frc(figure.subplots(), frc, pixel_m)
    return _url(figure)


def plot_positions(reconstruction: Reconstruction, run: Run) -> str:
    """Draw the positions and, as arrows, how they moved; return the ``data:`` URL of the picture."""
    figure = new_figure(*_SIZE)
    axis = figure.subplots()
    unit, factor = _unit(run)
    given = run.scan.positions * factor
    shifts = position_shifts(run.scan.positions, reconstruction.positions)
    distances = np.hypot(shifts[:, 0], shifts[:, 1])
    shown = axis.scatter(given[:, 1], given[:, 0], c=distances, s=_dot_size(len(given)), cmap='viridis', vmin=0)
    figure.colorbar(shown, ax=axis, label='moved by [pixels]')
    if distances.max() > 1e-6:
        _draw_arrows(axis, given, shifts * factor)
    axis.set(xlabel=f'x [{unit}]', ylabel=f'y [{unit}]', aspect='equal')
    axis.invert_yaxis()
    return _url(figure)


def _draw_arrows(axis: Any, given: npt.NDArray[np.float64], shifts: npt.NDArray[np.float64]) -> None:  # noqa: ANN401
    """Draw the shifts, enlarged so that the longest one is well visible; the title says how much."""
    longest = float(np.hypot(shifts[:, 0], shifts[:, 1]).max())
    wanted = _ARROW_SHARE * float(np.ptp(given, axis=0).max())
    enlarged = max(1.0, float(f'{wanted / longest:.1g}')) if wanted > 0 else 1.0
    axis.quiver(
        given[:, 1], given[:, 0], shifts[:, 1] * enlarged, shifts[:, 0] * enlarged,
        angles='xy', scale_units='xy', scale=1, color='C3', width=0.003,
    )  # fmt: skip
    axis.set_title(f'arrows: movement, {enlarged:g} times enlarged', fontsize=9)


def _unit(run: Run) -> tuple[str, npt.NDArray[np.float64]]:
    if run.pixel_m is None:
        return 'pixels', np.ones(2)
    return 'µm', np.array(run.pixel_m) * 1e6


def _dot_size(count: int) -> float:
    return float(np.clip(8000 / count, 2.0, 30.0))


def _url(figure: Figure) -> str:
    stream = io.BytesIO()
    figure.savefig(stream, dpi=_DPI, format='png')
    return png_url(stream.getvalue())
