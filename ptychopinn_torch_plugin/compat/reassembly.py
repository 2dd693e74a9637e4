"""PtychoPINN's reassembly: central regions of patches are shifted, summed, and divided by the shifted and summed ones.

The sums are those of :class:`~ptychopinn_torch_plugin.engines.stitching.Stitcher` with the weight one everywhere.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..data.scan import RawScan, patch_bounds
from ..errors import InputError
from .container import GroupedScan, object_patches

BLOCK_ELEMENTS = 2**22
"""Pixels of patches that are stitched at a time."""


class Arrangement(NamedTuple):
    """How patches enter the stitching."""

    flip_x: bool = False
    """Negate the first component, x, of the global offsets."""
    flip_y: bool = False
    """Negate the second component, y, of the global offsets."""
    transpose: bool = False
    """Swap the two image axes of the patches."""
    middle: int = 20
    """Side in pixels of the central region of each patch that is stitched."""


class Patches(NamedTuple):
    """Patches and where they belong, arranged."""

    patches: npt.NDArray[np.complex64]
    """``(S, H, W, C)``."""
    global_offsets: npt.NDArray[np.float64]
    """Centroids of the groups as (x, y) in pixels, ``(S, 1, 2, 1)``."""
    centres: npt.NDArray[np.float64]
    """Centres of the patches as (y, x) in pixels, ``(S, C, 2)``: the whole-pixel frames that they were cut at."""


class Picture(NamedTuple):
    """A stitched image."""

    image: npt.NDArray[np.complex64]
    """``(h, w)``; exactly 1 where no patch lies."""
    coverage: npt.NDArray[np.bool_]
    """``(h, w)``, True where a patch lies."""
    origin: tuple[int, int]
    """Pixel (y, x) of the object grid, with the flips, at which the image begins."""


def arranged_patches(
    object_array: npt.NDArray[np.complex64], scan: RawScan, groups: npt.NDArray[np.integer], how: Arrangement
) -> Patches:
    """Cut an object into the patches of grouped positions and arrange them.

    Args:
        object_array: transmission on the object grid of ``scan``, ``(h, w)``.
        scan: gives the positions and the shape of the patches.
        groups: ``(S, C)`` indices into the scan.
        how: flips and transposition; a flip turns the offsets of the members within their group, too.
    """
    shape = np.asarray(scan.pattern_shape)
    signs_xy = np.array([-1.0 if how.flip_x else 1.0, -1.0 if how.flip_y else 1.0])
    patches = object_patches(object_array, scan.positions, scan.pattern_shape, groups)
    patch_origins, _ = patch_bounds(scan.positions, scan.pattern_shape)
    centres = (patch_origins + (shape - 1) / 2)[groups] * signs_xy[::-1]
    offsets = GroupedScan(scan, groups)['coords_offsets'] * signs_xy[:, np.newaxis]
    return Patches(np.swapaxes(patches, 1, 2) if how.transpose else patches, offsets, centres)


def stitch(arranged: Patches, middle: int) -> Picture:
    """Stitch the central ``middle`` x ``middle`` pixels of all patches of all groups with equal weights.

    Every patch lies where its own position is, at whole pixels; a pixel is the mean of all that cover it, those of one
    group and of several alike.

    Raises:
        InputError: ``middle`` is not a whole number from 1 to the shorter side of the patches.
    """
    import torch

    from ..engines.stitching import Stitcher
    from ..physics.probe import is_illuminated

    patches, _, centres = arranged
    groups, height, width, members = patches.shape
    if isinstance(middle, bool) or not isinstance(middle, int | np.integer) or not 1 <= middle <= min(height, width):
        raise InputError(
            f'M is {middle!r}: give the side of the central region in pixels, a whole number from 1 to '
            f'{min(height, width)}.'
        )
    sides = np.array([height, width])
    first = sides // 2 - middle // 2
    # Whole already, but for transposed patches whose sides differ by an odd number.
    patch_origins = np.floor(centres - (sides - 1) / 2 + first + 0.5).astype(np.int64)
    origin = patch_origins.min(axis=(0, 1))
    bottom, right = patch_origins.max(axis=(0, 1)) - origin + middle
    stitcher = Stitcher((int(bottom), int(right)), torch.device('cpu'))
    centre = patches[:, first[0] : first[0] + middle, first[1] : first[1] + middle]
    step = max(1, BLOCK_ELEMENTS // (middle * middle * members))
    with torch.inference_mode():
        for start in range(0, groups, step):
            block = np.moveaxis(centre[start : start + step], -1, 1).reshape(1, -1, middle, middle)
            places = (patch_origins[start : start + step] - origin).reshape(1, -1, 2)
            ones = torch.ones((1, block.shape[1], 1, middle, middle), dtype=torch.complex64)
            stitcher.add(torch.from_numpy(np.ascontiguousarray(block)), ones, torch.from_numpy(places))
        image = stitcher.result(floor=0.0)
        coverage = is_illuminated(stitcher.photons, floor=0.0)
    return Picture(image.numpy(), coverage.numpy(), (int(origin[0]), int(origin[1])))
