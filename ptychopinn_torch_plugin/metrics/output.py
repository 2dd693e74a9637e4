"""The files of the metrics, beside the product: numbers, maps and a plot."""

from __future__ import annotations

import io
import json
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..dependencies import missing
from ..errors import OutputError
from ..storage.atomic import write_atomically
from .verdict import verdict

if TYPE_CHECKING:
    from ..types import Reconstruction, ReconstructionMetrics
    from .run import Run

logger = logging.getLogger(__name__)

# Scripts of users read these names and the keys in the files: they stay.
FOLDER = 'judgement'
NUMBERS_FILE = 'judgement.json'
MAPS_FILE = 'maps.npz'
PLOT_FILE = 'judgement.png'

_NUMBERS = {
    'r_factor': 'r_factor',
    'noise_r_factor': 'noise_r_factor',
    'misfit': 'reduced_chi_square',
    'excess': 'reduced_chi_square',
    'scale': 'scale',
    'covered_share': 'covered_share',
    'overlap': 'overlap',
    'uncertainty': 'uncertainty',
}
"""Keys in ``judgement.json`` and the fields of the metrics that they hold; version 0.1 called the misfit ``excess``."""
_MAPS = ('object_r_map', 'detector_r_map', 'uncertainty_map', 'photons_map')
_FRC_ARRAYS = ('frequencies', 'correlation', 'threshold')


def metrics_files(folder: Path) -> tuple[Path, ...]:
    """Return the paths that :func:`write_metrics` writes for a product in ``folder``."""
    return tuple(Path(folder) / FOLDER / name for name in (NUMBERS_FILE, MAPS_FILE, PLOT_FILE))


def write_metrics(
    folder: Path, reconstruction: Reconstruction, pixel_m: tuple[float, float] | None = None, run: Run | None = None
) -> bool:
    """Write ``judgement.json``, ``maps.npz`` and ``judgement.png`` into the folder ``judgement`` of ``folder``.

    The product is written before and does not depend on its metrics: what cannot be written or drawn is a warning in
    the log, not an error.

    Args:
        folder: where the product is.
        reconstruction: the reconstruction with its metrics.
        pixel_m: height and width of an object pixel in metres, where known.
        run: what was run: the plot then shows scan, date, settings, and probe and positions before the run.

    Returns:
        Whether all three files are written; False also where the reconstruction has no metrics.
    """
    metrics = reconstruction.metrics
    if metrics is None:
        return False
    numbers_file, maps_file, plot_file = metrics_files(folder)
    try:
        write_atomically(numbers_file, json.dumps(numbers(metrics, pixel_m), indent=2).encode() + b'\n')
        write_atomically(maps_file, _maps(metrics))
        write_atomically(plot_file, _plot(reconstruction, metrics, pixel_m, run))
    except ImportError as error:
        logger.warning('The metrics in %s have no plot. %s', numbers_file.parent, missing(error))
        return False
    except (OutputError, MemoryError) as error:
        reason = str(error) or 'there is not enough memory.'
        logger.warning('The metrics in %s are not complete: %s', numbers_file.parent, reason)
        return False
    return True


def numbers(
    metrics: ReconstructionMetrics, pixel_m: tuple[float, float] | None = None
) -> dict[str, float | str | None]:
    """Return the scalar metrics by name, and the verdict; None for a number that is not known.

    With ``pixel_m`` (height and width in metres), ``resolution_m`` is the resolution along the longer side of a pixel.
    """
    values: dict[str, float | str | None] = {
        key: _known(float(getattr(metrics, name))) for key, name in _NUMBERS.items()
    }
    if metrics.frc is not None:
        values['resolution_px'] = metrics.frc.resolution_px
        if pixel_m is not None:
            values['resolution_m'] = resolution_m(metrics.frc.resolution_px, pixel_m)
    found = metrics.credibility
    if found is not None:
        values |= {
            'colour': found.colour,
            'credibility': _known(found.value),
            'credibility_error': _known(found.error),
            'cause': found.cause,
            'map': found.map,
            'setting': found.setting,
        }
    values['verdict'] = verdict(metrics)
    return values


def resolution_m(resolution_px: float | None, pixel_m: tuple[float, float]) -> float | None:
    """Return a resolution in metres; where pixels are not square, along their longer side."""
    return None if resolution_px is None else resolution_px * max(pixel_m)


def _known(value: float) -> float | None:
    """Return None for NaN and infinity, which JSON cannot hold."""
    return value if math.isfinite(value) else None


def _maps(metrics: ReconstructionMetrics) -> bytes:
    arrays = {name: getattr(metrics, name) for name in _MAPS}
    if metrics.frc is not None:
        arrays |= {f'ring_{name}': getattr(metrics.frc, name) for name in _FRC_ARRAYS}
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def _plot(
    reconstruction: Reconstruction,
    metrics: ReconstructionMetrics,
    pixel_m: tuple[float, float] | None,
    run: Run | None,
) -> bytes:
    from .plots import draw_metrics

    return draw_metrics(reconstruction, metrics, pixel_m, run)
