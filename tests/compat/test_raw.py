"""Raw data under PtychoPINN's names: counts and amplitudes, groups, plain arrays; and the prepared probe."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ptychopinn_torch_plugin.compat.container import GroupedScan, PtychoDataContainerTorch
from ptychopinn_torch_plugin.compat.raw import RawDataTorch, drawn_groups
from ptychopinn_torch_plugin.config import ProbeConfig
from ptychopinn_torch_plugin.data.diffraction_quantity import DiffractionQuantity, dispersion
from ptychopinn_torch_plugin.data.probe_preparation import disk, prepared, smoothed
from ptychopinn_torch_plugin.data.scan import RawScan
from ptychopinn_torch_plugin.data.subsampling import select_subsample
from ptychopinn_torch_plugin.errors import InputError

ScanMaker = Callable[..., RawScan]
LOGGER = 'ptychopinn_torch_plugin.data'


def arrays_of(scan: RawScan, diff3d: npt.NDArray[Any]) -> dict[str, Any]:
    return {
        'xcoords': scan.positions[:, 1],
        'ycoords': scan.positions[:, 0],
        'diff3d': diff3d,
        'probeGuess': scan.probe[0],
        'objectGuess': scan.object_guess,
    }


@pytest.fixture
def scan(scan_of: ScanMaker) -> RawScan:
    return scan_of(shape=(18, 18))


def test_the_grouped_mapping_has_every_key_shape_and_dtype(scan: RawScan) -> None:
    grouped = RawDataTorch.from_scan(scan).generate_grouped_data(18, 5, 24, 2, 7, False)
    expected = {
        'diffraction': ((24, 18, 18, 4), np.float32),
        'X_full': ((24, 18, 18, 4), np.float32),
        'Y': ((24, 18, 18, 4), np.complex64),
        'coords_offsets': ((24, 1, 2, 1), np.float64),
        'coords_relative': ((24, 1, 2, 4), np.float64),
        'coords_start_offsets': ((24, 1, 2, 1), np.float64),
        'coords_start_relative': ((24, 1, 2, 4), np.float64),
        'coords_nn': ((24, 1, 2, 4), np.float64),
        'coords_start_nn': ((24, 1, 2, 4), np.float64),
        'nn_indices': ((24, 4), np.int32),
        'objectGuess': (scan.object_shape, np.complex64),
        'bad_pixels': ((18, 18), np.bool_),
    }
    assert set(grouped) == set(expected)
    for key, (shape, dtype) in expected.items():
        array = grouped[key]
        assert array is not None
        assert array.shape == shape, key
        assert array.dtype == dtype, key


def test_every_attribute_of_the_container(scan: RawScan) -> None:
    grouped = RawDataTorch.from_scan(scan).generate_grouped_data(18, K=5, gridsize=2, seed=0)
    container = PtychoDataContainerTorch(grouped, scan.probe)
    for name in ('X', 'Y_I', 'Y_phi'):
        assert getattr(container, name).dtype == np.float32
        assert getattr(container, name).shape == (12, 18, 18, 4)
    assert container.Y is not None
    assert container.Y.dtype == np.complex64
    assert container.global_offsets.shape == (12, 1, 2, 1)
    assert container.local_offsets.shape == container.coords.shape == container.coords_true.shape == (12, 1, 2, 4)
    assert container.coords_nominal.shape == (12, 1, 2, 4)
    assert container.nn_indices.dtype == np.int32
    assert container.norm_Y_I > 0
    assert container.YY_full is not None
    assert container.YY_full.shape == scan.object_shape
    assert container.probe is scan.probe
    assert container.pattern_shape == (18, 18)


def test_groups_are_an_anchor_and_near_neighbours_by_a_seed(scan: RawScan) -> None:
    raw = RawDataTorch.from_scan(scan)
    first = raw.generate_grouped_data(18, K=3, gridsize=2, seed=3).nn_indices
    assert np.array_equal(first, raw.generate_grouped_data(18, K=3, gridsize=2, seed=3).nn_indices)
    assert not np.array_equal(first, raw.generate_grouped_data(18, K=3, gridsize=2, seed=4).nn_indices)
    distances = np.linalg.norm(scan.positions[:, None] - scan.positions, axis=-1)
    for group in first:
        assert set(group[1:].tolist()) == set(np.argsort(distances[group[0]])[1:4].tolist())


def test_anchors_are_sampled_or_taken_in_order(scan: RawScan) -> None:
    raw = RawDataTorch.from_scan(scan)
    in_order = raw.generate_grouped_data(18, sequential_sampling=True, n_groups=5).nn_indices[:, 0]
    assert in_order.tolist() == [0, 1, 2, 3, 4]
    at_random = raw.generate_grouped_data(18, seed=1, n_groups=5).nn_indices[:, 0]
    assert len(set(at_random.tolist())) == 5
    assert at_random.tolist() != [0, 1, 2, 3, 4]
    # More anchors than positions: every position once before any again.
    assert np.bincount(raw.generate_grouped_data(18, seed=1, n_groups=24).nn_indices[:, 0]).tolist() == [2] * 12


def test_nsamples_is_the_number_of_groups_in_all(scan: RawScan) -> None:
    raw = RawDataTorch.from_scan(scan)
    for number in (1, 5, 12, 30):
        assert raw.generate_grouped_data(18, 4, number, 2).nn_indices.shape == (number, 4)
        assert raw.generate_grouped_data(18, gridsize=2, n_groups=number).nn_indices.shape == (number, 4)
    assert raw.generate_grouped_data(18, gridsize=2).nn_indices.shape == (12, 4)


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        ({'N': 64}, 'N is 64 but the patterns have 18 x 18 pixels: give N = 18'),
        ({'N': 18, 'gridsize': 0}, 'gridsize = 0: give a whole number, at least 1'),
        ({'N': 18, 'nsamples': 0}, 'nsamples = 0'),
        ({'N': 18, 'n_groups': 0}, 'nsamples = 0'),
        ({'N': 18, 'nsamples': 4, 'n_groups': 5}, 'are the same number'),
        ({'N': 18, 'gridsize': 'train.npz'}, "gridsize = 'train.npz': .* the order of the arguments is N, K, nsamples"),
        ({'N': 18, 'K': -1}, 'K = -1: give a whole number, at least 0'),
        ({'N': 18, 'gridsize': 2, 'K': 2}, 'needs at least 3 neighbours'),
        ({'N': 18, 'gridsize': 4, 'K': 20}, 'cannot be drawn from 12'),
    ],
)
def test_impossible_groups_are_refused(scan: RawScan, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        RawDataTorch.from_scan(scan).generate_grouped_data(**arguments)


def test_the_properties_are_those_of_the_scan(scan: RawScan) -> None:
    raw = RawDataTorch.from_scan(scan)
    assert np.array_equal(raw.xcoords, scan.positions[:, 1])
    assert np.array_equal(raw.ycoords, scan.positions[:, 0])
    assert raw.probeGuess is scan.probe
    assert raw.objectGuess is scan.object_guess
    assert raw.diff3d.dtype == np.float32
    assert np.allclose(raw.diff3d**2, scan.counts)


def test_an_object_that_says_nothing_is_none(scan_of: ScanMaker) -> None:
    assert RawDataTorch.from_scan(scan_of(object_guess=np.ones((40, 40), dtype=complex))).objectGuess is None


@pytest.mark.parametrize('size', [1, 4, 5, 12, 100])
def test_compact_groups_hold_every_position(scan: RawScan, size: int) -> None:
    groups = RawDataTorch.from_scan(scan).compact_groups(size)
    expected = min(size, 12)
    assert groups.shape == (-(-12 // expected), expected)
    assert groups.dtype == np.int32
    assert np.unique(groups).tolist() == list(range(12))
    assert all(np.unique(group).size == expected for group in groups)


def test_drawn_groups_fit_small_scans(scan: RawScan) -> None:
    assert drawn_groups(scan, 64, 80, 3, seed=0, sequential=True).shape == (3, 12)
    assert drawn_groups(scan, 4, 6, 3, seed=0, sequential=True)[:, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize('quantity', ['auto', 'counts', 'amplitude'])
def test_both_quantities_of_a_file_are_the_same_scan(
    scan: RawScan, tmp_path: Path, quantity: DiffractionQuantity
) -> None:
    values = scan.counts if quantity == 'counts' else np.sqrt(scan.counts)
    np.savez(tmp_path / 'f.npz', **arrays_of(scan, values))
    back = RawDataTorch.from_file(tmp_path / 'f.npz', diffraction_quantity=quantity).scan
    assert np.array_equal(RawDataTorch.from_file(tmp_path / 'f.npz', dialect=quantity).scan.counts, back.counts)
    assert np.array_equal(back.counts, scan.counts)
    assert np.array_equal(back.positions, scan.positions)


def test_arrays_are_read_as_files_are(scan: RawScan, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, LOGGER):
        raw = RawDataTorch.from_arrays(arrays_of(scan, np.sqrt(scan.counts)))
    assert np.array_equal(raw.scan.counts, scan.counts)
    assert 'arrays: diff3d is read as amplitudes and squared: the squares of its values are whole' in caplog.text


@pytest.mark.parametrize(
    ('changes', 'sentence'),
    [
        ({'photons': 1}, 'photons mean nothing here'),
        ({'nn_indices': 1}, r'give PtychoDataContainerTorch\(grouped, probe\) instead'),
        ({'xcoords': np.ones(3)}, r'xcoords has shape \(3,\) and ycoords \(12,\)'),
        ({'xcoords': None}, 'xcoords are missing'),
    ],
)
def test_unusable_arrays_are_refused(scan: RawScan, changes: dict[str, Any], sentence: str) -> None:
    arrays = arrays_of(scan, scan.counts) | changes
    with pytest.raises(InputError, match=sentence):
        RawDataTorch.from_arrays({key: value for key, value in arrays.items() if value is not None})


def test_the_wrong_quantity_is_detected(scan: RawScan) -> None:
    with pytest.raises(InputError, match="photon counts and no amplitudes: give diffraction_quantity = 'counts'"):
        RawDataTorch.from_arrays(arrays_of(scan, scan.counts), diffraction_quantity='amplitude')
    with pytest.raises(InputError, match=r'whole numbers, which are photon counts'):
        RawDataTorch.from_arrays(arrays_of(scan, scan.counts.astype(float)), diffraction_quantity='amplitude')
    with pytest.raises(InputError, match="amplitudes and no photon counts: give diffraction_quantity = 'amplitude'"):
        RawDataTorch.from_arrays(arrays_of(scan, np.sqrt(scan.counts)), diffraction_quantity='counts')


def test_zeros_and_ones_are_either(scan: RawScan) -> None:
    binary = (scan.counts > 3).astype(np.uint8)
    for quantity in ('counts', 'amplitude'):
        raw = RawDataTorch.from_arrays(arrays_of(scan, binary), diffraction_quantity=quantity)
        assert np.array_equal(raw.scan.counts, binary)


def test_the_statistics_tell_scaled_amplitudes_from_counts(scan_of: ScanMaker) -> None:
    scan = scan_of(shape=(18, 18), mean=60.0)
    scaled = 0.9 * np.sqrt(scan.counts)
    assert dispersion(scaled, ~scan.bad_pixels) < 0.1
    assert 0.7 < dispersion(scan.counts, ~scan.bad_pixels) < 1.3
    with pytest.raises(InputError, match='but photon counts vary by their mean at least'):
        RawDataTorch.from_arrays(arrays_of(scan, scaled), diffraction_quantity='counts')
    with pytest.raises(InputError, match='does not tell whether.*as amplitudes have'):
        RawDataTorch.from_arrays(arrays_of(scan, scaled))
    # Half counts (a mean of two frames, say) are no whole numbers, but vary as counts do.
    assert RawDataTorch.from_arrays(arrays_of(scan, scan.counts + 0.25), diffraction_quantity='counts').scan.size == 12


def test_the_quantity_in_a_file_is_used_and_not_contradicted(scan: RawScan) -> None:
    arrays = arrays_of(scan, np.sqrt(scan.counts)) | {'diff3d_quantity': np.array('amplitude')}
    assert np.array_equal(RawDataTorch.from_arrays(arrays).scan.counts, scan.counts)
    with pytest.raises(InputError, match="diff3d holds amplitude, as diff3d_quantity says, and not 'counts'"):
        RawDataTorch.from_arrays(arrays, diffraction_quantity='counts')


def test_normalised_amplitudes_are_scaled_to_the_photons(scan: RawScan) -> None:
    arrays = arrays_of(scan, 0.0123 * np.sqrt(scan.counts + 0.1))
    raw = RawDataTorch.from_arrays(arrays, diffraction_quantity='amplitude', nphotons=5e4)
    assert np.isclose(raw.scan.counts.sum(axis=(1, 2)).mean(), 5e4)
    assert np.allclose(raw.scan.counts / raw.scan.counts.mean(), (scan.counts + 0.1) / (scan.counts + 0.1).mean())


def test_counted_photons_are_not_scaled_and_that_is_said(scan: RawScan, caplog: pytest.LogCaptureFixture) -> None:
    for values, quantity in ((scan.counts, 'counts'), (np.sqrt(scan.counts), 'amplitude')):
        caplog.clear()
        raw = RawDataTorch.from_arrays(arrays_of(scan, values), diffraction_quantity=quantity, nphotons=5e4)  # type: ignore[arg-type]
        assert np.array_equal(raw.scan.counts, scan.counts)
        assert 'nphotons = 50000 is not used: the patterns hold' in caplog.text


@pytest.mark.parametrize('nphotons', [0.0, -1.0, np.inf])
def test_impossible_photons_are_refused(scan: RawScan, nphotons: float) -> None:
    with pytest.raises(InputError, match='give the mean photons of a pattern'):
        RawDataTorch.from_arrays(arrays_of(scan, scan.counts), nphotons=nphotons)


def test_an_unknown_quantity_is_refused(scan: RawScan) -> None:
    with pytest.raises(InputError, match="diffraction_quantity is 'photons'"):
        RawDataTorch.from_arrays(arrays_of(scan, scan.counts), diffraction_quantity='photons')  # type: ignore[arg-type]


# Plain grouped arrays


def plain(scan: RawScan, groups: npt.NDArray[np.integer], **changes: Any) -> PtychoDataContainerTorch:  # noqa: ANN401
    return PtychoDataContainerTorch(dict(GroupedScan(scan, groups)) | changes, scan.probe)


def test_plain_arrays_become_the_scan_with_every_position_once(scan: RawScan) -> None:
    groups = np.array([[7, 2, 5], [2, 9, 7], [11, 5, 2]])
    record, members = plain(scan, groups).members()
    back = record.scan
    used = [2, 5, 7, 9, 11]
    assert np.array_equal(np.array(used)[members], groups)
    assert np.array_equal(back.counts, scan.counts[used])
    assert np.allclose(back.positions, scan.positions[used])
    assert np.array_equal(back.object_guess, scan.object_guess)


def test_plain_arrays_may_be_normalised_and_masked(scan: RawScan) -> None:
    groups = np.arange(12).reshape(4, 3)
    mask = np.zeros((18, 18), dtype=bool)
    mask[0, 0] = True
    amplitudes = np.asarray(GroupedScan(scan, groups)['diffraction']) * np.float32(0.01)
    record, _ = plain(scan, groups, diffraction=amplitudes, bad_pixels=mask).members(nphotons=100.0)
    back = record.scan
    assert np.isclose(back.counts[:, ~mask].sum() / 12, 100.0)
    assert np.array_equal(back.bad_pixels, mask)


def test_plain_arrays_that_contradict_themselves_are_refused(scan: RawScan) -> None:
    groups = np.array([[0, 1], [1, 2]])
    grouped = GroupedScan(scan, groups)
    moved = np.array(grouped['coords_relative'])
    moved[1, 0, 0, 0] += 1
    with pytest.raises(InputError, match='Position 1 of nn_indices has the coordinates'):
        plain(scan, groups, coords_relative=moved).members()
    other = np.array(grouped['diffraction'])
    other[1, 3, 3, 0] += 1
    with pytest.raises(InputError, match='Position 1 of nn_indices has two different patterns'):
        plain(scan, groups, diffraction=other).members()
    with pytest.raises(InputError, match='diffraction has shape'):
        plain(scan, groups, diffraction=other[..., :1]).members()
    with pytest.raises(InputError, match='coords_offsets has shape'):
        plain(scan, groups, coords_offsets=np.zeros((2, 2))).members()


def test_members_of_a_scan_are_a_part_of_it_and_all_of_it_is_itself(scan: RawScan) -> None:
    whole, groups = PtychoDataContainerTorch.from_scan(scan, np.arange(12).reshape(4, 3)).members()
    assert whole.scan is scan
    assert groups.tolist() == np.arange(12).reshape(4, 3).tolist()
    part, groups = PtychoDataContainerTorch.from_scan(scan, np.array([[8, 3], [3, 4]])).members()
    assert np.array_equal(part.scan.counts, scan.counts[[3, 4, 8]])
    assert groups.tolist() == [[2, 0], [0, 1]]


# Subsets


def test_a_subsample_is_drawn_once_and_in_order(scan: RawScan) -> None:
    part = select_subsample(scan, 5, 1)
    places = [int(np.flatnonzero((scan.positions == position).all(axis=1))[0]) for position in part.positions]
    assert places == sorted(set(places))
    assert len(places) == 5
    assert np.array_equal(part.counts, scan.counts[places])
    assert np.array_equal(select_subsample(scan, 5, 1).positions, part.positions)
    assert not np.array_equal(select_subsample(scan, 5, 2).positions, part.positions)
    assert select_subsample(scan, 0, 1) is scan
    assert select_subsample(scan, 12, 1) is scan


# The probe


def test_nothing_asked_for_is_the_scan_itself(scan: RawScan) -> None:
    assert prepared(scan, ProbeConfig(scale=3.0)) is scan


def test_the_mask_is_a_disk_around_the_centre_of_power(scan_of: ScanMaker) -> None:
    probe = np.zeros((2, 18, 17), dtype=np.complex64)
    probe[0, 3:8, 5:10] = 1
    probe[1, 3:8, 5:10] = 1j
    assert disk(probe, 2.0).sum() == 13
    assert disk(probe, 2.0)[5, 7]
    masked = prepared(scan_of(probe=probe), ProbeConfig(mask_radius=2.0)).probe
    assert masked.dtype == np.complex64
    assert (np.abs(masked) > 0).sum() == 26
    assert np.array_equal(masked[:, disk(probe, 2.0)], probe[:, disk(probe, 2.0)])


def test_smoothing_convolves_the_wave_and_comes_before_the_mask(scan_of: ScanMaker) -> None:
    probe = np.zeros((18, 17), dtype=np.complex128)
    probe[9, 8] = 2j
    smooth = smoothed(probe[np.newaxis], 1.5)[0]
    assert np.isclose(smooth.sum(), 2j, rtol=1e-4)
    assert np.isclose(smooth[9, 8] / smooth[9, 9], np.exp(1 / (2 * 1.5**2)), rtol=1e-3)
    both = prepared(scan_of(probe=probe), ProbeConfig(smoothing_sigma=1.5, mask_radius=2.0)).probe[0]
    assert (np.abs(both) > 0).sum() == 13
    assert np.isclose(both[9, 9], smooth[9, 9])


def test_a_mask_that_leaves_nothing_is_refused(scan_of: ScanMaker) -> None:
    probe = np.zeros((18, 17), dtype=np.complex64)
    probe[2, 2] = probe[14, 14] = 1
    with pytest.raises(InputError, match='the probe is zero inside a disk'):
        prepared(scan_of(probe=probe), ProbeConfig(mask_radius=1.0))
