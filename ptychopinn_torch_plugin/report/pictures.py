"""Pictures of a result for other programs: TIFF files with the values themselves, or PNG files to look at."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ..metrics.plots import limits_of
from ..storage.atomic import write_atomically
from .images import Colours, paint, png_of

TIFF_SUFFIXES: Final = ('.tif', '.tiff')
PNG_SUFFIX: Final = '.png'
PARTS: Final = ('amplitude', 'phase', 'probe-amplitude', 'probe-phase')
"""Ends of the names of the files."""

_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT, _DESCRIPTION = 282, 283, 296, 270
_NO_UNIT: Final = 1

Real = npt.NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Result:
    """What pictures are made of."""

    object_array: npt.NDArray[np.complexfloating]
    """Transmission ``(h, w)``; exactly ``1 + 0j`` where it is not known."""
    probe: npt.NDArray[np.complexfloating]
    """Incoherent modes ``(M, H, W)``."""
    pixel_m: tuple[float, float] | None = None
    """Height and width of a pixel in metres, where known."""


def picture_files(path: Path) -> tuple[Path, ...]:
    """Return the files that :func:`write_pictures` writes for ``path``: its name with the part before the suffix."""
    return tuple(path.with_name(f'{path.stem}-{part}{path.suffix}') for part in PARTS)


def write_pictures(path: Path, result: Result) -> tuple[Path, ...]:
    """Write amplitude and phase of the object and of all probe modes as TIFF or PNG files.

    A TIFF file holds the values as float32 (phase in radians), a page for each mode of the probe, and the pixel size in
    the form that ImageJ reads. A PNG file has a pixel for each pixel, with the colours of a report; what is not known
    is hatched.

    Args:
        path: ``NAME.tif``, ``NAME.tiff`` or ``NAME.png``; the files are ``NAME-amplitude.tif`` and so on.
        result: what is written.

    Returns:
        The files.

    Raises:
        OutputError: a file cannot be written.
        ImportError: matplotlib, for PNG files, is not installed or does not work here.
    """
    files = picture_files(path)
    object_array, probe = result.object_array, result.probe
    pages = ([np.abs(object_array)], [np.angle(object_array)], np.abs(probe), np.angle(probe))
    for file, page in zip(files, pages, strict=True):
        is_tiff = path.suffix.lower() in TIFF_SUFFIXES
        content = _tiff(list(page), result.pixel_m) if is_tiff else _png(list(page), file.stem, object_array)
        write_atomically(file, content)
    return files


def _tiff(pages: Sequence[Real], pixel_m: tuple[float, float] | None) -> bytes:
    from PIL import Image
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    directory: Any = ImageFileDirectory_v2()
    description = f'ImageJ=1.54\nimages={len(pages)}\nslices={len(pages)}\n'
    if pixel_m is not None:
        directory[_X_RESOLUTION], directory[_Y_RESOLUTION] = (1e-6 / side for side in pixel_m[::-1])
        directory[_RESOLUTION_UNIT] = _NO_UNIT
        description += 'unit=micron\n'
    directory[_DESCRIPTION] = description
    first, *others = (Image.fromarray(np.ascontiguousarray(page, dtype=np.float32)) for page in pages)
    stream = io.BytesIO()
    first.save(stream, 'TIFF', save_all=True, append_images=others, tiffinfo=directory)
    return stream.getvalue()


def _png(pages: Sequence[Real], name: str, object_array: npt.NDArray[np.complexfloating]) -> bytes:
    """Return a PNG file of the pages side by side."""
    is_phase, is_probe = name.endswith('phase'), name.endswith(('probe-amplitude', 'probe-phase'))
    sheet = np.concatenate([np.asarray(page, dtype=np.float64) for page in pages], axis=1)
    if not is_probe:
        sheet = np.where(object_array == 1, np.nan, sheet)
    colours: Colours = 'twilight' if is_phase else 'viridis' if is_probe else 'gray'
    limits = (-np.pi, np.pi) if is_phase else limits_of(sheet, is_probe)
    return png_of(paint(sheet, colours, limits))
