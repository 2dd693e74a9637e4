"""Neighbours, groups, the split and the windows, against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptychopinn_torch_plugin.data.grouping import compact_windows, draw_groups, hold_out_positions, nearest_neighbours
from ptychopinn_torch_plugin.errors import InputError


def cloud(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 100, size=(n, 2))


def raster(rows: int, columns: int) -> np.ndarray:
    return np.argwhere(np.ones((rows, columns))).astype(np.float64) * 3.0


def test_neighbours_are_the_nearest_in_order() -> None:
    positions = cloud(40)
    distances = np.linalg.norm(positions[:, np.newaxis] - positions, axis=-1)
    np.fill_diagonal(distances, np.inf)
    found = nearest_neighbours(positions, 7)
    assert found.dtype == np.int32
    assert np.array_equal(found, np.argsort(distances, axis=1)[:, :7])


def test_equal_distances_are_ordered_by_index() -> None:
    found = nearest_neighbours(raster(3, 3), 4)
    assert found[4].tolist() == [1, 3, 5, 7]


def test_coincident_positions_are_neighbours_but_not_of_themselves() -> None:
    found = nearest_neighbours(np.zeros((6, 2)), 5)
    for index, row in enumerate(found):
        assert sorted({*row.tolist(), index}) == list(range(6))
    few = nearest_neighbours(np.zeros((6, 2)), 2)
    assert not (few == np.arange(6)[:, np.newaxis]).any()


def test_no_neighbours_is_a_valid_number() -> None:
    assert nearest_neighbours(cloud(3), 0).shape == (3, 0)


@pytest.mark.parametrize('k', [-1, 5])
def test_more_neighbours_than_positions_are_refused(k: int) -> None:
    with pytest.raises(InputError, match=f'{k} neighbours were asked for but each of the 5 positions has 4 others'):
        nearest_neighbours(cloud(5), k)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 40), size=st.integers(1, 12), extra=st.integers(0, 40), seed=st.integers(0, 5))
def test_groups_hold_the_anchor_and_its_neighbours(n: int, size: int, extra: int, seed: int) -> None:
    positions, rng = cloud(n, seed), np.random.default_rng(seed)
    if size > n:
        with pytest.raises(InputError, match=f'A group of {size} positions cannot be drawn from {n}'):
            draw_groups(positions, size, size - 1 + extra, rng=rng)
        return
    count = size - 1 + extra
    groups = draw_groups(positions, size, count, rng=rng)
    assert groups.shape == (n, size)
    assert groups.dtype == np.int32
    assert groups[:, 0].tolist() == list(range(n))
    allowed = nearest_neighbours(positions, min(count, n - 1))
    for group in groups:
        assert len(set(group.tolist())) == size
        assert set(group[1:].tolist()) <= set(allowed[group[0]].tolist())


def test_all_neighbours_get_drawn() -> None:
    positions = cloud(30)
    groups = draw_groups(positions, 3, 6, anchors=np.zeros(400, dtype=int), rng=np.random.default_rng(0))
    assert set(groups[:, 1:].ravel().tolist()) == set(nearest_neighbours(positions, 6)[0].tolist())


def test_the_draw_is_fixed_by_the_generator() -> None:
    first, second, other = (
        draw_groups(cloud(30), 4, 10, rng=np.random.default_rng(seed)).tolist() for seed in (1, 1, 2)
    )
    assert first == second
    assert first != other


def test_anchors_outside_the_candidates_take_neighbours_inside() -> None:
    training, validation = np.arange(0, 20), np.arange(20, 30)
    groups = draw_groups(cloud(30), 4, 19, anchors=validation, candidates=training, rng=np.random.default_rng(0))
    assert groups[:, 0].tolist() == validation.tolist()
    assert (groups[:, 1:] < 20).all()


def test_an_anchor_outside_may_take_every_candidate() -> None:
    groups = draw_groups(cloud(4), 4, 3, anchors=np.array([3]), candidates=np.arange(3), rng=np.random.default_rng(0))
    assert sorted(groups[0].tolist()) == [0, 1, 2, 3]


def test_single_shot_groups_need_no_neighbours() -> None:
    groups = draw_groups(cloud(1), 1, 0, rng=np.random.default_rng(0))
    assert groups.tolist() == [[0]]


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        ((0, 4), 'The group size is 0'),
        ((4, 2), 'A group of 4 positions needs at least 3 neighbours but the neighbour count is 2: raise'),
        ((9, 20), 'A group of 9 positions cannot be drawn from 8: lower the group size to at most 8'),
    ],
)
def test_impossible_groups_are_refused(arguments: tuple[int, int], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        draw_groups(cloud(8), *arguments, rng=np.random.default_rng(0))


@pytest.mark.parametrize('wrong', [[8], [-1], [0.5], [[1]]])
def test_indices_outside_the_scan_are_refused(wrong: list[float]) -> None:
    with pytest.raises(InputError, match='anchors must be a list of whole numbers from 0 to 7'):
        draw_groups(cloud(8), 2, 3, anchors=np.asarray(wrong), rng=np.random.default_rng(0))


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 300), fraction=st.floats(0.0, 0.999), seed=st.integers(0, 3))
def test_a_split_is_a_partition(n: int, fraction: float, seed: int) -> None:
    training, validation = hold_out_positions(n, fraction, np.random.default_rng(seed))
    assert sorted([*training.tolist(), *validation.tolist()]) == list(range(n))
    assert training.tolist() == sorted(training.tolist())
    assert validation.tolist() == sorted(validation.tolist())
    assert len(training) >= 1
    assert abs(len(validation) - n * fraction) <= 0.5 or len(training) == 1


def test_nothing_is_held_out_where_nothing_is_asked_for() -> None:
    assert hold_out_positions(100, 0.0, np.random.default_rng(0))[1].size == 0
    assert hold_out_positions(8, 0.05, np.random.default_rng(0))[1].size == 0


@pytest.mark.parametrize(('n', 'fraction'), [(0, 0.1), (5, 1.0), (5, -0.1), (5, float('nan'))])
def test_impossible_splits_are_refused(n: int, fraction: float) -> None:
    with pytest.raises(InputError):
        hold_out_positions(n, fraction, np.random.default_rng(0))


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 200), size=st.integers(1, 60), repeated=st.booleans())
def test_windows_are_a_partition_of_even_sizes(n: int, size: int, repeated: bool) -> None:
    positions = np.zeros((n, 2)) if repeated else cloud(n)
    windows = compact_windows(positions, size)
    assert sorted(np.concatenate(windows).tolist()) == list(range(n))
    sizes = [len(window) for window in windows]
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1
    assert len(windows) == -(-n // size)


def test_windows_are_compact() -> None:
    positions = raster(16, 16)
    for window in compact_windows(positions, 16):
        assert np.ptp(positions[window], axis=0).tolist() == [9.0, 9.0]


def test_long_scans_are_cut_across() -> None:
    first, second = compact_windows(raster(2, 50), 50)
    assert raster(2, 50)[first][:, 1].max() < raster(2, 50)[second][:, 1].min()


def test_an_empty_window_is_refused() -> None:
    with pytest.raises(InputError, match='The window size is 0'):
        compact_windows(cloud(4), 0)
