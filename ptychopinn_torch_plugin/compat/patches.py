"""Object patches at whole pixels: cut out of an object, and averaged into one."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..data.scan import patch_bounds


class MeanOfPatches(NamedTuple):
    """An image whose every pixel is the mean of the patches that cover it."""

    image: npt.NDArray[np.complex64]
    """``(h, w)``, just large enough for all patches; exactly 1 where no patch lies."""
    coverage: npt.NDArray[np.bool_]
    """``(h, w)``, True where a patch lies."""
    origin: npt.NDArray[np.int64]
    """Pixel (y, x) at which the image begins, in the frame of the patch origins, ``(2,)``."""


def object_patches(
    object_array: npt.NDArray[np.complexfloating],
    positions: npt.NDArray[np.float64],
    pattern_shape: tuple[int, int],
    groups: npt.NDArray[np.integer],
) -> npt.NDArray[np.complex64]:
    """Cut the patches at grouped positions out of an object, at whole pixels.

    Args:
        object_array: transmission ``(h, w)``.
        positions: patch centres ``(n, 2)`` as (y, x), pixels of the object.
        pattern_shape: ``(H, W)`` of a patch.
        groups: ``(S, C)`` indices into ``positions``.

    Returns:
        complex64 ``(S, H, W, C)``; 1 outside of the object grid.
    """
    patch_origins, _ = patch_bounds(positions, pattern_shape)
    below = np.maximum(-patch_origins.min(axis=0), 0)
    above = np.maximum(patch_origins.max(axis=0) + np.asarray(pattern_shape) - np.asarray(object_array.shape), 0)
    padding = tuple(zip(below.tolist(), above.tolist(), strict=True))
    padded = np.pad(object_array, padding, constant_values=1).astype(np.complex64)
    windows = np.lib.stride_tricks.sliding_window_view(padded, pattern_shape)
    rows, columns = (patch_origins + below)[groups].transpose(2, 0, 1)
    patches: npt.NDArray[np.complex64] = np.moveaxis(windows[rows, columns], 1, -1)
    return patches


def mean_of_patches(patches: npt.NDArray[Any], patch_origins: npt.NDArray[np.integer]) -> MeanOfPatches:
    """Average patches ``(n, H, W)`` with equal weights; ``patch_origins`` ``(n, 2)`` are their first pixels (y, x)."""
    height, width = patches.shape[1:]
    origin = patch_origins.min(axis=0).astype(np.int64)
    rows, columns = patch_origins.max(axis=0) - origin + (height, width)
    total = np.zeros((rows, columns), dtype=np.complex128)
    number = np.zeros((rows, columns), dtype=np.int64)
    for patch, (y, x) in zip(patches, (patch_origins - origin).tolist(), strict=True):
        total[y : y + height, x : x + width] += patch
        number[y : y + height, x : x + width] += 1
    image = np.where(number > 0, total / np.maximum(number, 1), 1).astype(np.complex64)
    return MeanOfPatches(image, number > 0, origin)
