"""Select positions: neighbours, groups, the validation split, and compact windows.

All results are index arrays into a scan; patterns are not read. All functions are deterministic for a given random
generator.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from ..errors import InputError

IndexArray = npt.NDArray[np.int32]
Positions = npt.NDArray[np.float64]


def nearest_neighbours(positions: Positions, k: int) -> IndexArray:
    """Find the ``k`` nearest other positions of every position.

    Args:
        positions: ``(n, 2)`` as (y, x), pixels.
        k: number of neighbours, 0 to ``n - 1``.

    Returns:
        int32 ``(n, k)``: nearest first, equal distances by index. A position is never its own neighbour; another one at
        the same place is.

    Raises:
        InputError: ``k`` is negative or there are not so many other positions.
    """
    if not 0 <= k <= len(positions) - 1:
        raise InputError(
            f'{k} neighbours were asked for but each of the {len(positions)} positions has {len(positions) - 1} '
            'others: lower the neighbour count.'
        )
    everyone = np.arange(len(positions), dtype=np.int32)
    return _neighbours_among(positions, everyone, everyone, k)


def draw_groups(
    positions: Positions,
    group_size: int,
    neighbor_count: int,
    *,
    anchors: npt.NDArray[np.integer] | None = None,
    candidates: npt.NDArray[np.integer] | None = None,
    rng: np.random.Generator,
) -> IndexArray:
    """Draw one group for every anchor: the anchor and ``C - 1`` of its ``K`` nearest neighbours, without replacement.

    For several groups per anchor, repeat it in ``anchors`` or call again. Hoidn et al., Sci Rep 13, 22789 (2023).

    Args:
        positions: ``(n, 2)`` as (y, x), pixels.
        group_size: C, positions in a group; 1 is the single-shot mode.
        neighbor_count: K. Where fewer than K other candidates exist, all of them are the neighbours.
        anchors: indices ``(S,)``; every candidate once by default.
        candidates: the indices neighbours are taken from; all positions by default.
        rng: source of the draw.

    Returns:
        int32 ``(S, C)``, the anchor first.

    Raises:
        InputError: ``C < 1``, ``K < C - 1``, fewer candidates than a group needs, or an index outside the scan.
    """
    pool = np.unique(_indices(candidates, len(positions), 'candidates'))
    heads = pool if anchors is None else _indices(anchors, len(positions), 'anchors')
    _check_group(group_size, neighbor_count)
    others = len(pool) - int(np.isin(heads, pool).any())
    if others < group_size - 1:
        raise InputError(
            f'A group of {group_size} positions cannot be drawn from {others + 1}: lower the group size to at most '
            f'{others + 1} or use a larger scan.'
        )
    if group_size == 1:
        return heads[:, np.newaxis].copy()
    neighbours = _neighbours_among(positions, heads, pool, min(neighbor_count, others))
    drawn = np.argsort(rng.random(neighbours.shape), axis=1, kind='stable')[:, : group_size - 1]
    return np.concatenate([heads[:, np.newaxis], np.take_along_axis(neighbours, drawn, axis=1)], axis=1)


def hold_out_positions(n: int, fraction: float, rng: np.random.Generator) -> tuple[IndexArray, IndexArray]:
    """Split ``n`` positions at random into training and validation.

    Args:
        n: number of positions, at least 1.
        fraction: share held out, 0 to below 1; rounded to whole positions.
        rng: source of the draw.

    Returns:
        ``(training, validation)``: sorted int32 index arrays, together every position once. Training has at least one;
        validation is empty where ``fraction`` is 0 or comes to less than half a position.

    Raises:
        InputError: ``n`` or ``fraction`` is out of range.
    """
    if n < 1:
        raise InputError(f'A scan of {n} positions cannot be split: it needs at least 1.')
    if not 0.0 <= fraction < 1.0:
        raise InputError(f'The validation fraction is {fraction}: it must be at least 0 and below 1.')
    held_out = min(int(np.floor(n * fraction + 0.5)), n - 1)
    order = rng.permutation(n).astype(np.int32)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def compact_windows(positions: Positions, window_size: int) -> list[IndexArray]:
    """Divide all positions into compact windows, by repeated halving across the longer axis.

    Args:
        positions: ``(n, 2)`` as (y, x), pixels.
        window_size: largest number of positions in a window, at least 1.

    Returns:
        ``ceil(n / window_size)`` sorted int32 arrays whose sizes differ by at most one; every position is in exactly
        one of them.

    Raises:
        InputError: ``window_size`` is below 1.
    """
    if window_size < 1:
        raise InputError(f'The window size is {window_size}: it must be at least 1 position.')
    number = -(-len(positions) // window_size)
    everyone = np.arange(len(positions), dtype=np.int32)
    return _bisect(positions, everyone, number) if number else []


def _bisect(positions: Positions, members: IndexArray, number: int) -> list[IndexArray]:
    """Divide ``members`` into ``number`` windows of nearly equal size."""
    if number == 1:
        return [np.sort(members)]
    held = positions[members]
    axis = int(np.argmax(np.ptp(held, axis=0)))
    # Equal coordinates along the axis (rows of a raster) are ordered by the other axis: both halves are connected.
    order = members[np.lexsort((held[:, 1 - axis], held[:, axis]))]
    first = number // 2
    cut = len(members) * first // number
    return _bisect(positions, order[:cut], first) + _bisect(positions, order[cut:], number - first)


def _neighbours_among(positions: Positions, anchors: IndexArray, candidates: IndexArray, k: int) -> IndexArray:
    """Return the ``k`` nearest ``candidates`` of every anchor other than itself, int32 ``(S, k)``, nearest first."""
    if k == 0 or len(anchors) == 0:
        return np.empty((len(anchors), k), dtype=np.int32)
    asked = min(k + 1, len(candidates))
    distances, found = cKDTree(positions[candidates]).query(positions[anchors], k=np.arange(1, asked + 1))
    indices = candidates[found]
    # The anchor itself comes last (positions may coincide); the others are sorted by distance, then by index.
    itself = indices == anchors[:, np.newaxis]
    order = np.lexsort((indices, distances, itself), axis=1)[:, :k]
    return np.take_along_axis(indices, order, axis=1)


def _indices(given: npt.NDArray[np.integer] | None, n: int, field: str) -> IndexArray:
    """Return ``given`` as int32, all of ``range(n)`` for None; raise :class:`InputError` for an index out of range."""
    if given is None:
        return np.arange(n, dtype=np.int32)
    indices: npt.NDArray[np.integer] = np.asarray(given)
    if indices.ndim != 1 or (
        indices.size and (indices.dtype.kind not in 'ui' or indices.min() < 0 or indices.max() >= n)
    ):
        raise InputError(f'{field} must be a list of whole numbers from 0 to {n - 1}, the positions of the scan.')
    return indices.astype(np.int32)


def _check_group(group_size: int, neighbor_count: int) -> None:
    if group_size < 1:
        raise InputError(f'The group size is {group_size}: it must be at least 1 position.')
    if neighbor_count < group_size - 1:
        raise InputError(
            f'A group of {group_size} positions needs at least {group_size - 1} neighbours but the neighbour count is '
            f'{neighbor_count}: raise the neighbour count or lower the group size.'
        )
