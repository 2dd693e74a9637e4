"""The curves of a report, drawn by matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..metrics.plots import draw_frc, draw_losses, draw_positions, new_figure
from .images import png_url

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..metrics.run import Run
    from ..types import FourierRingCorrelation, LossRecord, Reconstruction

_DPI = 130
_SIZE = (6.2, 4.2)


def plot_losses(losses: Sequence[LossRecord]) -> str:
    """Draw the losses of the epochs, dimensionless; return the ``data:`` URL of the picture."""
    figure = new_figure(*_SIZE)
    draw_losses(figure.subplots(), losses)
    return _url(figure)


def plot_frc(frc: FourierRingCorrelation, pixel_m: tuple[float, float] | None) -> str:
    """Draw the Fourier ring correlation of the half scans; return the ``data:`` URL of the picture."""
    figure = new_figure(*_SIZE)
    draw_frc(figure.subplots(), frc, pixel_m)
    return _url(figure)


def plot_positions(reconstruction: Reconstruction, run: Run) -> str:
    """Draw the positions and, as arrows, how they moved; return the ``data:`` URL of the picture."""
    figure = new_figure(*_SIZE)
    draw_positions(figure.subplots(), run.scan.positions, reconstruction.positions, run.pixel_m)
    return _url(figure)


def _url(figure: Figure) -> str:
    stream = io.BytesIO()
    figure.savefig(stream, dpi=_DPI, format='png')
    return png_url(stream.getvalue())
