"""The final picture of a training run: the object of the network alone for the first scan, in grey."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image


def grey_picture(object_array: npt.NDArray[np.complexfloating]) -> npt.NDArray[np.uint8]:
    """Draw amplitude beside phase, ``(h, w)`` complex to ``(h, 2 w)`` uint8.

    Each half spans its own 0.5th to 99.5th percentile. The phase is relative to that of the mean.
    """
    phase = np.angle(object_array * np.exp(-1j * np.angle(object_array.sum())))
    return np.concatenate([_grey(np.abs(object_array)), _grey(phase)], axis=1)


def _grey(values: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    low, high = np.percentile(values, (0.5, 99.5))
    return np.asarray(np.clip((values - low) / max(high - low, 1e-12) * 255, 0, 255), dtype=np.uint8)


def encode_png(image: npt.NDArray[np.uint8]) -> bytes:
    """Return a grey image ``(h, w)`` as a PNG file."""
    content = io.BytesIO()
    Image.fromarray(image).save(content, 'PNG')
    return content.getvalue()
