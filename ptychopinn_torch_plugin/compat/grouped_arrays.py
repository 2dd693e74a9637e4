"""Plain grouped arrays, as other programs make them, turned back into a scan: every position once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ..data.diffraction_quantity import counts_from
from ..data.scan import RawScan, make_raw_scan
from ..data.validation import check_bad_pixels
from ..errors import InputError

Array = npt.NDArray[Any]

SAME_PLACE_PX = 1e-3
"""Coordinates of one position may differ by so much between groups: PtychoPINN keeps them in single precision."""

SAME_AMPLITUDE = 1e-4
"""Relative difference that the copies of one pattern may have."""


def scan_of_arrays(
    grouped: Mapping[str, Array],
    probe: npt.NDArray[np.complexfloating],
    used: npt.NDArray[np.integer],
    groups: npt.NDArray[np.integer],
    nphotons: float | None,
) -> RawScan:
    """Make a scan of grouped arrays under the names of PtychoPINN.

    Args:
        grouped: ``diffraction`` (S, H, W, C) amplitudes, ``coords_offsets`` (S, 1, 2, 1) and ``coords_relative``
            (S, 1, 2, C) as (x, y) in pixels; ``objectGuess`` (h, w) and ``bad_pixels`` (H, W) where they are known.
        probe: ``(H, W)`` or ``(modes, H, W)``.
        used: the numbers of the positions, ascending, ``(n,)``.
        groups: ``(S, C)`` indices into ``used``.
        nphotons: mean photons per pattern, where the amplitudes are normalised.

    Returns:
        The scan. Without an object, its grid just holds the patches, and all positions are shifted by whole pixels.

    Raises:
        InputError: shapes that do not fit, or one position with several coordinates or patterns.
    """
    amplitudes = np.asarray(grouped['diffraction'])
    if amplitudes.ndim != 4 or (amplitudes.shape[0], amplitudes.shape[3]) != groups.shape:
        raise InputError(
            f'diffraction has shape {amplitudes.shape} and nn_indices {groups.shape}: give (S, H, W, C) and (S, C).'
        )
    shape = (int(amplitudes.shape[1]), int(amplitudes.shape[2]))
    _, first = np.unique(groups, return_index=True)
    places = _absolute(grouped, groups.shape)
    patterns = np.moveaxis(amplitudes, -1, 1).reshape(groups.size, *shape)
    for copy, member in enumerate(groups.ravel()):
        _refuse_two_faces(places, patterns, copy, int(first[member]), int(used[member]))
    mask = check_bad_pixels(grouped.get('bad_pixels'), shape)
    name = 'grouped arrays'
    return make_raw_scan(
        counts_from(patterns[first], ~mask, 'amplitude', name, nphotons=nphotons, trusted=True),
        places[first, ::-1],
        probe,
        bad_pixels=mask,
        object_guess=grouped.get('objectGuess'),
        name=name,
    )


def _absolute(grouped: Mapping[str, Array], shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Coordinates of all members of all groups, ``(S C, 2)`` as (x, y)."""
    groups, members = shape
    offsets, relative = (np.asarray(grouped[key], dtype=np.float64) for key in ('coords_offsets', 'coords_relative'))
    if offsets.shape != (groups, 1, 2, 1) or relative.shape != (groups, 1, 2, members):
        raise InputError(
            f'coords_offsets has shape {offsets.shape} and coords_relative {relative.shape}: for nn_indices of shape '
            f'{shape} give ({groups}, 1, 2, 1) and ({groups}, 1, 2, {members}).'
        )
    return np.asarray((offsets + relative)[:, 0].transpose(0, 2, 1).reshape(-1, 2))


def _refuse_two_faces(places: npt.NDArray[np.float64], patterns: Array, copy: int, first: int, number: int) -> None:
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
