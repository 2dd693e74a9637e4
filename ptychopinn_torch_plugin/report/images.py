"""Maps as PNG files of one pixel for each pixel of the array, with the colours of matplotlib."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import numpy.typing as npt

from ..metrics.plots import import_matplotlib
from ..metrics.run import scale_bar

if TYPE_CHECKING:
    from PIL import Image

Colours = Literal['gray', 'viridis', 'cividis', 'magma', 'twilight']
Real = npt.NDArray[np.floating]

MAX_SIDE_PX: Final = 1200
"""Longest side of a map in a report; larger ones are reduced by a whole factor."""
_SHADES: Final = 254
_LIGHT, _DARK = 254, 255
_HATCH_PX: Final = 3
_HATCH_COLOURS: Final = ((232, 232, 232), (214, 214, 214))


@dataclass(frozen=True)
class MapImage:
    """A map in a report."""

    name: str
    """Identifier in the page."""
    title: str
    url: str
    """``data:`` URL of the PNG file."""
    shape: tuple[int, int]
    """Pixels (y, x) of the PNG file."""
    legend_url: str
    """``data:`` URL of the colours from the smallest to the largest value."""
    low: str
    high: str
    bar_percent: float = 0.0
    """Length of the scale bar in percent of the width of the map; 0 for none."""
    bar_text: str = ''
    note: str = ''


def draw_map(
    name: str,
    title: str,
    array: Real,
    colours: Colours,
    limits: tuple[float, float],
    *,
    labels: tuple[str, str] | None = None,
    pixel: tuple[float, str] | None = None,
    note: str = '',
) -> MapImage:
    """Draw a map ``(h, w)``; values that are not finite are hatched in grey.

    Args:
        name: identifier in the page.
        title: title above the map.
        array: the values.
        colours: name of a perceptually uniform colour map of matplotlib (cyclic: ``'twilight'``).
        limits: values of the first and the last colour.
        labels: text at both ends of the legend; None writes the limits.
        pixel: width of a pixel and its unit, for the scale bar; None draws none.
        note: sentence below the map.

    Raises:
        ImportError: matplotlib is not installed or does not work here.
    """
    step = max(1, math.ceil(max(array.shape) / MAX_SIDE_PX))
    shown = np.asarray(array[::step, ::step], dtype=np.float64)
    if step > 1:
        note = f'{note} Reduced: one of {step} rows and columns is shown.'.strip()
    low, high = limits
    picture = paint(shown, colours, limits)
    legend = _paletted(np.arange(_SHADES, dtype=np.uint8)[None], _palette(colours))
    length, text = (0.0, '') if pixel is None else scale_bar(shown.shape[1], pixel[0] * step, pixel[1])
    bar = 100 * length / shown.shape[1], text
    texts = labels or (f'{low:.3g}', f'{high:.3g}')
    height, width = shown.shape
    return MapImage(
        name, title, png_url(png_of(picture)), (height, width), png_url(png_of(legend)), *texts, *bar, note
    )  # fmt: skip


def paint(array: Real, colours: Colours, limits: tuple[float, float]) -> Image.Image:
    """Return a picture of one pixel for each value of ``array`` ``(h, w)``; what is not finite is hatched in grey.

    Raises:
        ImportError: matplotlib is not installed or does not work here.
    """
    low, high = limits
    known = np.isfinite(array)
    scaled = np.clip((np.where(known, array, low) - low) / (high - low if high > low else 1.0), 0.0, 1.0)
    y, x = np.indices(array.shape)
    hatch = np.where(((y + x) // _HATCH_PX) % 2 == 0, _LIGHT, _DARK)
    index = np.where(known, np.rint(scaled * (_SHADES - 1)), hatch).astype(np.uint8)
    return _paletted(index, _palette(colours))


def png_url(content: bytes) -> str:
    """Return the ``data:`` URL of a PNG file."""
    return f'data:image/png;base64,{base64.b64encode(content).decode("ascii")}'


def _palette(colours: Colours) -> list[int]:
    import_matplotlib()
    import matplotlib as mpl

    table = mpl.colormaps[colours](np.linspace(0.0, 1.0, _SHADES), bytes=True)[:, :3]
    return [int(value) for row in (*table, *_HATCH_COLOURS) for value in row]


def _paletted(index: npt.NDArray[np.uint8], palette: list[int]) -> Image.Image:
    from PIL import Image

    picture = Image.frombytes('P', (index.shape[1], index.shape[0]), np.ascontiguousarray(index).tobytes())
    picture.putpalette(palette)
    return picture


def png_of(picture: Image.Image) -> bytes:
    """Return a picture as a PNG file."""
    stream = io.BytesIO()
    picture.save(stream, 'PNG', optimize=True)
    return stream.getvalue()
