"""Plain grouped arrays, as other programs make them, turned back into a scan with every position once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ..data.diffraction_quantity import counts_from
from ..data.scan import make_raw_scan
from ..data.validation import check_bad_pixels
from ..errors import InputError
from .records import ScanRecord, with_patches

Array = npt.NDArray[Any]

SAME_PLACE_PX = 1e-3
"""Coordinates of one position may differ by so much between groups: PtychoPINN keeps them in single precision."""

SAME_AMPLITUDE = 1e-4
"""Relative difference that the copies of one pattern may have."""


def record_of_groups(
    grouped: Mapping[str, Array | None],
    probe: npt.NDArray[np.complexfloating],
    used: npt.NDArray[np.integer],
    groups: npt.NDArray[np.integer],
    nphotons: float | None,
) -> ScanRecord:
    """Make a scan of grouped arrays under the names of PtychoPINN.

    Args:
        grouped: ``diffraction`` (S, H, W, C) amplitudes, ``coords_offsets`` (S, 1, 2, 1) and ``coords_relative``
            (S, 1, 2, C) as (x, y) in pixels; where they are known the two of ``coords_start_*``, object patches ``Y``
            (S, H, W, C), ``objectGuess`` (h, w) and ``bad_pixels`` (H, W).
        probe: ``(H, W)`` or ``(modes, H, W)``.
        used: the numbers of the positions, ascending, ``(n,)``.
        groups: ``(S, C)`` indices into ``used``.
        nphotons: mean photons per pattern, where the amplitudes are normalised.

    Returns:
        The record of the scan. Without an object, the object grid just holds the patches.

    Raises:
        InputError: shapes that do not fit, or one position with several coordinates or patterns.
    """
    patterns = _flattened(grouped, 'diffraction', groups.shape)
    shape = patterns.shape[1:]
    _, first = np.unique(groups, return_index=True)
    places = _absolute(grouped, 'coords', groups.shape)
    for copy, member in enumerate(groups.ravel()):
        _refuse_contradiction(places, patterns, copy, int(first[member]), int(used[member]))
    mask = check_bad_pixels(grouped.get('bad_pixels'), shape)
    name = 'grouped arrays'
    scan = make_raw_scan(
        counts_from(patterns[first], ~mask, 'amplitude', name, nphotons=nphotons, trusted=True),
        places[first, ::-1],
        probe,
        bad_pixels=mask,
        object_guess=grouped.get('objectGuess'),
        name=name,
    )
    has_start = all(grouped.get(f'coords_start_{part}') is not None for part in ('offsets', 'relative'))
    start = _absolute(grouped, 'coords_start', groups.shape) if has_start else places
    index = np.zeros(scan.size, dtype=np.int64)
    record = ScanRecord(scan, places[first, ::-1], start[first, ::-1], index)
    if grouped.get('Y') is None:
        return record
    return with_patches(record, _flattened(grouped, 'Y', groups.shape)[first])


def _flattened(grouped: Mapping[str, Array | None], key: str, shape: tuple[int, ...]) -> Array:
    """Return the images of all members of all groups, ``(S C, H, W)``."""
    images = np.asarray(grouped[key])
    if images.ndim != 4 or (images.shape[0], images.shape[3]) != shape:
        raise InputError(f'{key} has shape {images.shape} and nn_indices {shape}: give (S, H, W, C) and (S, C).')
    return np.moveaxis(images, -1, 1).reshape(-1, *images.shape[1:3])


def _absolute(grouped: Mapping[str, Array | None], prefix: str, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Return the coordinates of all members of all groups, ``(S C, 2)`` as (x, y)."""
    groups, members = shape
    offsets, relative = (np.asarray(grouped[f'{prefix}_{part}'], dtype=np.float64) for part in ('offsets', 'relative'))
    if offsets.shape != (groups, 1, 2, 1) or relative.shape != (groups, 1, 2, members):
        raise InputError(
            f'{prefix}_offsets has shape {offsets.shape} and {prefix}_relative {relative.shape}: for nn_indices of '
            f'shape {shape} give ({groups}, 1, 2, 1) and ({groups}, 1, 2, {members}).'
        )
    return np.asarray((offsets + relative)[:, 0].transpose(0, 2, 1).reshape(-1, 2))


def _refuse_contradiction(places: npt.NDArray[np.float64], patterns: Array, copy: int, first: int, number: int) -> None:
    """Raise if two members that nn_indices calls the same position are not."""
    if copy == first:
        return
    if not np.allclose(places[copy], places[first], rtol=0, atol=SAME_PLACE_PX):
        raise InputError(
            f'Position {number} of nn_indices has the coordinates (x, y) = {tuple(places[first].tolist())} in one group'
            f' and {tuple(places[copy].tolist())} in another: group the data again.'
        )
    if not np.allclose(patterns[copy], patterns[first], rtol=SAME_AMPLITUDE, atol=0, equal_nan=True):
        raise InputError(f'Position {number} of nn_indices has two different patterns: group the data again.')
