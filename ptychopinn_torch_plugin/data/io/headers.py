"""What a file of patterns says of itself, read without its patterns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError


@dataclass(frozen=True)
class DiffractionHeader:
    """Header of a ``diffraction.h5`` of Ptychodus."""

    patterns: int
    """Number of patterns."""
    pattern_shape: tuple[int, int]
    """Height and width of a pattern in pixels."""
    dtype: str
    """Type of the counts as stored, for example ``uint16``."""
    bad_pixels: int
    """Number of detector pixels marked as not measured."""
    detector_pixel_m: tuple[float, float]
    """Height and width of a detector pixel in metres."""


def read_diffraction_header(file: Path) -> DiffractionHeader:
    """Read shapes, mask and pixel size of a ``diffraction.h5``, but not the patterns.

    Raises:
        InputError: the file is missing, is not HDF5, or lacks something Ptychodus writes.
    """
    import h5py
    from ptychodus.api.io import DiffractionFileKeys as Key

    file = Path(file)
    if not file.is_file():
        raise InputError(f'{file} does not exist.')
    try:
        with h5py.File(file, 'r') as content:
            patterns: Any = content[Key.PATTERNS.value]
            number, height, width = patterns.shape
            return DiffractionHeader(
                patterns=int(number),
                pattern_shape=(int(height), int(width)),
                dtype=str(patterns.dtype),
                bad_pixels=int(np.count_nonzero(content[Key.BAD_PIXELS.value][()])),
                detector_pixel_m=(
                    float(patterns.attrs[Key.DETECTOR_PIXEL_HEIGHT.value]),
                    float(patterns.attrs[Key.DETECTOR_PIXEL_WIDTH.value]),
                ),
            )
    except (KeyError, OSError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        # h5py raises all of them for files that are no HDF5, cut short, or hold data of another kind.
        raise InputError(f'{file} cannot be read as patterns of Ptychodus ({error}): save it again.') from error
