"""The files of a judgement, beside the product: figures, maps and a picture."""

from __future__ import annotations

import io
import json
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import OutputError
from ..storage.atomic import write_atomically
from .verdict import verdict

if TYPE_CHECKING:
    from ..types import Reconstruction, ReconstructionMetrics

logger = logging.getLogger(__name__)

FOLDER = 'judgement'
FIGURES_FILE = 'judgement.json'
MAPS_FILE = 'maps.npz'
PICTURE_FILE = 'judgement.png'

_FIGURES = ('r_factor', 'noise_r_factor', 'reduced_chi_square', 'scale', 'covered_share', 'overlap', 'uncertainty')
_MAPS = ('object_r_map', 'detector_r_map', 'uncertainty_map', 'photons_map')
_RINGS = ('frequencies', 'correlation', 'threshold')


def write_judgement(folder: Path, reconstruction: Reconstruction, pixel_m: tuple[float, float] | None = None) -> bool:
    """Write ``judgement.json``, ``maps.npz`` and ``judgement.png`` into the folder ``judgement`` of ``folder``.

    A reconstruction is worth more than its judgement: what cannot be written is a warning in the log, not an error.

    Args:
        folder: where the product lies.
        reconstruction: what was reconstructed, with its judgement.
        pixel_m: height and width of an object pixel in metres, where known.

    Returns:
        Whether all of it is written; False also where the reconstruction was not judged.
    """
    judgement = reconstruction.metrics
    if judgement is None:
        return False
    target = Path(folder) / FOLDER
    try:
        write_atomically(target / FIGURES_FILE, json.dumps(figures(judgement, pixel_m), indent=2).encode() + b'\n')
        write_atomically(target / MAPS_FILE, _maps(judgement))
        write_atomically(target / PICTURE_FILE, _picture(reconstruction, judgement, pixel_m))
    except OutputError as error:
        logger.warning('The judgement is not complete in %s: %s', target, error)
        return False
    except ImportError as error:
        logger.warning(
            'There is no picture of the judgement in %s: %s cannot be imported, install it with "pip install '
            'matplotlib"; figures and maps are there.', target, error.name,
        )  # fmt: skip
        return False
    return True


def figures(
    judgement: ReconstructionMetrics, pixel_m: tuple[float, float] | None = None
) -> dict[str, float | str | None]:
    """The scalars by name, with the verdict; a number that is not known is None.

    With ``pixel_m`` (height and width in metres), ``resolution_m`` is the resolution along the coarser axis.
    """
    values: dict[str, float | str | None] = {name: _known(float(getattr(judgement, name))) for name in _FIGURES}
    if judgement.frc is not None:
        values['resolution_px'] = judgement.frc.resolution_px
        if pixel_m is not None:
            values['resolution_m'] = resolution_m(judgement.frc.resolution_px, pixel_m)
    values['verdict'] = verdict(judgement)
    return values


def resolution_m(resolution_px: float | None, pixel_m: tuple[float, float]) -> float | None:
    """A resolution in metres; where pixels are not square, along their longer side."""
    return None if resolution_px is None else resolution_px * max(pixel_m)


def _known(value: float) -> float | None:
    """JSON has no word for what is not a number."""
    return value if math.isfinite(value) else None


def _maps(judgement: ReconstructionMetrics) -> bytes:
    arrays = {name: getattr(judgement, name) for name in _MAPS}
    if judgement.frc is not None:
        arrays |= {f'ring_{name}': getattr(judgement.frc, name) for name in _RINGS}
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def _picture(
    reconstruction: Reconstruction, judgement: ReconstructionMetrics, pixel_m: tuple[float, float] | None
) -> bytes:
    from .plots import draw_judgement

    return draw_judgement(reconstruction, judgement, pixel_m)
