"""PtychoPINN's reassembly: central regions of patches are shifted, summed, and divided by shifted and summed ones."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..data.scan import patch_bounds
from ..errors import InputError
from .container import GroupedScan
from .patches import MeanOfPatches, mean_of_patches, object_patches
from .records import ScanRecord


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


class ArrangedPatches(NamedTuple):
    """Patches and their places, arranged."""

    patches: npt.NDArray[np.complex64]
    """``(S, H, W, C)``."""
    global_offsets: npt.NDArray[np.float64]
    """Centroids of the groups as (x, y), coordinates of the data in pixels, ``(S, 1, 2, 1)``."""
    centres: npt.NDArray[np.float64]
    """Centres of the patches as (y, x), ``(S, C, 2)``, pixels of the object grid; they are cut at whole pixels."""


def arranged_patches(
    object_array: npt.NDArray[np.complex64], record: ScanRecord, groups: npt.NDArray[np.integer], how: Arrangement
) -> ArrangedPatches:
    """Cut an object into the patches of grouped positions and arrange them.

    Args:
        object_array: transmission on the object grid of the scan, ``(h, w)``.
        record: gives the positions and the shape of the patches.
        groups: ``(S, C)`` indices into the scan.
        how: flips and transposition; a flip negates the offsets of the members within their group, too.

    Raises:
        InputError: ``how.middle`` is not a whole number from 1 to the shorter side of the patches.
    """
    scan = record.scan
    largest = min(scan.pattern_shape)
    if isinstance(how.middle, bool) or not isinstance(how.middle, int | np.integer) or not 1 <= how.middle <= largest:
        raise InputError(
            f'M is {how.middle!r}: give the side of the central region in pixels, a whole number from 1 to {largest}.'
        )
    signs_xy = np.array([-1.0 if how.flip_x else 1.0, -1.0 if how.flip_y else 1.0])
    patches = object_patches(object_array, scan.positions, scan.pattern_shape, groups)
    patch_origins, _ = patch_bounds(scan.positions, scan.pattern_shape)
    centres = (patch_origins + (np.asarray(scan.pattern_shape) - 1) / 2)[groups] * signs_xy[::-1]
    offsets = np.asarray(GroupedScan(record, groups)['coords_offsets']) * signs_xy[:, np.newaxis]
    return ArrangedPatches(np.swapaxes(patches, 1, 2) if how.transpose else patches, offsets, centres)


def stitch(arranged: ArrangedPatches, middle: int) -> MeanOfPatches:
    """Stitch the central ``middle`` x ``middle`` pixels of all patches of all groups with equal weights.

    Every patch lies where its own position is, at whole pixels; a pixel is the mean of all that cover it, those of one
    group and of several alike. The origin of the result is in pixels of the object grid, after the flips.
    """
    patches, _, centres = arranged
    sides = np.array(patches.shape[1:3])
    first = sides // 2 - middle // 2
    # Whole already, but for transposed patches whose sides differ by an odd number.
    patch_origins = np.floor(centres - (sides - 1) / 2 + first + 0.5).astype(np.int64)
    centre = patches[:, first[0] : first[0] + middle, first[1] : first[1] + middle]
    return mean_of_patches(np.moveaxis(centre, -1, 1).reshape(-1, middle, middle), patch_origins.reshape(-1, 2))
