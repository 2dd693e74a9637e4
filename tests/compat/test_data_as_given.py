"""What data hold comes out as it went in, and the probe that is given is the one that is used."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import ptychopinn_torch_plugin
from ptychopinn_torch_plugin import workflows
from ptychopinn_torch_plugin.compat.container import GroupedScan, PtychoDataContainerTorch
from ptychopinn_torch_plugin.compat.patches import object_patches
from ptychopinn_torch_plugin.compat.raw import RawDataTorch
from ptychopinn_torch_plugin.data.scan import RawScan
from ptychopinn_torch_plugin.errors import InputError

ScanMaker = Callable[..., RawScan]
Arrays = dict[str, Any]


@pytest.fixture
def scan(scan_of: ScanMaker) -> RawScan:
    return scan_of(shape=(18, 18))


@pytest.fixture
def arrays(scan: RawScan) -> Arrays:
    """Data without an object, in a frame of coordinates of their own."""
    x, y = scan.positions[:, 1] + 1000.0, scan.positions[:, 0] - 200.0
    return {
        'xcoords': x,
        'ycoords': y,
        'xcoords_start': x + 0.5,
        'ycoords_start': y - 0.25,
        'diff3d': scan.counts,
        'probeGuess': scan.probe[0],
    }


@pytest.fixture
def other_probe() -> npt.NDArray[np.complex128]:
    rng = np.random.default_rng(3)
    return np.asarray(rng.normal(size=(18, 18)) + 1j * rng.normal(size=(18, 18)))


def patches_of(scan: RawScan) -> npt.NDArray[np.complex64]:
    """Object patches at all positions, ``(n, H, W)``."""
    all_positions = np.arange(scan.size)[:, np.newaxis]
    return object_patches(scan.object_guess, scan.positions, scan.pattern_shape, all_positions)[..., 0]


# The probe


def test_the_given_probe_is_used(scan: RawScan, other_probe: npt.NDArray[np.complex128]) -> None:
    grouped = RawDataTorch.from_scan(scan).generate_grouped_data(18, K=4, gridsize=2, seed=0)
    for data in (grouped, dict(grouped)):
        container = PtychoDataContainerTorch(data, other_probe)
        assert np.array_equal(container.members()[0].scan.probe[0], other_probe)
        assert np.allclose(container.as_tensors().probe[0].numpy(), other_probe)
        assert container.has_given_probe
        container.probe = 2j * other_probe
        assert np.array_equal(container.members()[0].scan.probe[0], 2j * other_probe)
        assert np.allclose(container.as_tensors().probe[0].numpy(), 2j * other_probe)
    lazy = PtychoDataContainerTorch(grouped, scan.probe[0])
    assert not lazy.has_given_probe
    lazy.probe = other_probe
    assert np.array_equal(lazy.scan.probe[0], other_probe)
    assert np.array_equal(scan.probe[0], np.ones((18, 18)))


@pytest.mark.parametrize(
    ('probe', 'sentence'),
    [(np.ones((18, 17), dtype=complex), 'probe has 18 x 17 pixels'), (np.ones((18, 18)), 'probe has dtype float64')],
)
def test_a_probe_that_does_not_fit_is_refused(scan: RawScan, probe: npt.NDArray[Any], sentence: str) -> None:
    container = PtychoDataContainerTorch.from_scan(scan, np.array([[0, 1]]))
    with pytest.raises(InputError, match=sentence):
        container.probe = probe
    with pytest.raises(InputError, match=sentence):
        PtychoDataContainerTorch(dict(GroupedScan(scan, np.array([[0, 1]]))), probe)
    assert container.probe is scan.probe


# No object


def test_without_an_object_all_of_its_views_are_none(arrays: Arrays) -> None:
    raw = RawDataTorch.from_arrays(arrays)
    grouped = raw.generate_grouped_data(18, gridsize=2, seed=0)
    assert grouped['Y'] is None
    assert grouped['objectGuess'] is None
    for data in (grouped, dict(grouped), {key: value for key, value in grouped.items() if value is not None}):
        container = PtychoDataContainerTorch(data, raw.probeGuess)
        assert (container.Y, container.Y_I, container.Y_phi, container.YY_full) == (None, None, None, None)
    placeholder = dict(grouped) | {'objectGuess': np.ones((40, 40), dtype=complex)}
    assert PtychoDataContainerTorch(placeholder, raw.probeGuess).YY_full is None


# Coordinates


@pytest.mark.parametrize('has_object', [True, False])
def test_coordinates_come_out_as_they_went_in(arrays: Arrays, scan: RawScan, tmp_path: Path, has_object: bool) -> None:
    if has_object:
        arrays |= {'objectGuess': scan.object_guess, 'xcoords': scan.positions[:, 1], 'ycoords': scan.positions[:, 0]}
    np.savez(tmp_path / 'scan.npz', **arrays)
    raw = RawDataTorch.from_file(tmp_path / 'scan.npz')
    raw.to_file(tmp_path / 'again.npz')
    again = RawDataTorch.from_file(tmp_path / 'again.npz')
    for one in (raw, again, RawDataTorch.from_arrays(arrays)):
        for key in ('xcoords', 'ycoords', 'xcoords_start', 'ycoords_start'):
            assert np.array_equal(getattr(one, key), arrays[key]), key
        assert np.array_equal(one.scan.counts, scan.counts)
    grouped = again.generate_grouped_data(18, 4, 12, 2, 0, True)
    for prefix, suffix in (('coords', ''), ('coords_start', '_start')):
        absolute, offsets, relative = (
            np.asarray(grouped[f'{prefix}_{part}']) for part in ('nn', 'offsets', 'relative')
        )
        assert np.array_equal(absolute[:, 0, 0], arrays[f'xcoords{suffix}'][grouped.nn_indices])
        assert np.array_equal(absolute[:, 0, 1], arrays[f'ycoords{suffix}'][grouped.nn_indices])
        assert np.allclose(offsets + relative, absolute)
        assert np.allclose(relative.mean(axis=-1), 0)
    # Plain arrays keep both, too.
    record, members = PtychoDataContainerTorch(dict(grouped), raw.probeGuess).members()
    assert np.allclose(record.coordinates[members[0, 0]], [arrays['ycoords'][0], arrays['xcoords'][0]])
    assert np.allclose(
        record.start_coordinates[members[0, 0]], [arrays['ycoords_start'][0], arrays['xcoords_start'][0]]
    )
    expected = (0.0, 0.0) if has_object else tuple(raw.record.coordinates[0] - raw.scan.positions[0])
    assert again.record.object_origin == expected
    assert all(float(side).is_integer() for side in expected)


def test_halves_of_a_scan_share_the_frame_of_the_data(arrays: Arrays) -> None:
    halves = [
        RawDataTorch.from_arrays({key: value[part] if key != 'probeGuess' else value for key, value in arrays.items()})
        for part in (np.s_[:6], np.s_[6:])
    ]
    containers = [workflows.ensure_container(half, {'gridsize': 1}) for half in halves]
    for container, part in zip(containers, (np.s_[:6], np.s_[6:]), strict=True):
        members = container.nn_indices[:, 0]
        assert np.array_equal(container.global_offsets[:, 0, 0, 0], arrays['xcoords'][part][members])
        assert np.array_equal(container.global_offsets[:, 0, 1, 0], arrays['ycoords'][part][members])


def test_nominal_coordinates_of_one_axis_are_refused(arrays: Arrays) -> None:
    with pytest.raises(InputError, match='ycoords_start have shape .*: give both xcoords_start and ycoords_start'):
        RawDataTorch.from_arrays(arrays | {'xcoords_start': None})
    for wrong in (np.ones(3), np.array(['a'] * 12)):
        with pytest.raises(InputError, match='with 12 real numbers'):
            RawDataTorch.from_arrays(arrays | {'xcoords_start': wrong})


def test_scan_indices_are_one_for_all_or_one_per_position(arrays: Arrays) -> None:
    assert RawDataTorch.from_arrays(arrays | {'scan_index': 7}).scan_index.tolist() == [7] * 12
    with pytest.raises(InputError, match='scan_index holds 3 numbers for 12 positions'):
        RawDataTorch.from_arrays(arrays | {'scan_index': np.zeros(3)})


# Object patches


def test_patches_make_the_object_that_the_data_lack(
    scan: RawScan, arrays: Arrays, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    patches = patches_of(scan)
    np.savez(tmp_path / 'scan.npz', **arrays, Y=patches[..., np.newaxis])
    with caplog.at_level(logging.INFO):
        raw = RawDataTorch.from_file(tmp_path / 'scan.npz')
    assert 'the reference object is assembled from the object patches Y' in caplog.text
    assert raw.Y is not None
    assert np.array_equal(raw.Y, patches)
    # Cut out of the assembled object again, they are the same patches: nothing was moved.
    assert np.allclose(patches_of(raw.scan), patches, atol=1e-6)
    container = workflows.ensure_container(raw, {'gridsize': 1})
    assert container.Y is not None
    assert np.array_equal(container.Y[..., 0], patches[container.nn_indices[:, 0]])
    assert container.YY_full is raw.scan.object_guess
    plain = PtychoDataContainerTorch(dict(GroupedScan(raw.record, container.nn_indices)), raw.probeGuess)
    record, _ = PtychoDataContainerTorch(
        {key: plain._grouped[key] for key in plain._grouped if key != 'objectGuess'}, raw.probeGuess
    ).members()
    assert np.allclose(record.scan.object_guess, raw.scan.object_guess, atol=1e-6)


def test_patches_beside_an_object_must_show_it(scan: RawScan, caplog: pytest.LogCaptureFixture) -> None:
    given = {'xcoords': scan.positions[:, 1], 'ycoords': scan.positions[:, 0], 'diff3d': scan.counts}
    given |= {'probeGuess': scan.probe[0], 'objectGuess': scan.object_guess}
    patches = patches_of(scan)
    with caplog.at_level(logging.INFO):
        raw = RawDataTorch.from_arrays(given | {'Y': 3j * patches})
    assert 'Y agrees with objectGuess (correlation 1.00), which is the reference' in caplog.text
    assert raw.objectGuess is scan.object_guess
    with pytest.raises(InputError, match=r'Y and objectGuess show different objects \(correlation 0'):
        RawDataTorch.from_arrays(given | {'Y': np.swapaxes(patches, 1, 2)})


@pytest.mark.parametrize(
    ('patches', 'sentence'),
    [
        (np.ones((12, 18, 17), dtype=complex), r'Y has shape \(12, 18, 17\)'),
        (np.ones((12, 18, 18)), 'dtype float64: give finite complex object patches of shape'),
        (np.full((12, 18, 18), np.nan, dtype=complex), 'give finite complex object patches'),
    ],
)
def test_unusable_patches_are_refused(arrays: Arrays, tmp_path: Path, patches: npt.NDArray[Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        RawDataTorch.from_arrays(arrays | {'Y': patches})
    np.savez(tmp_path / 'scan.npz', **arrays, Y=patches)
    with pytest.raises(InputError, match=f'scan.npz: {sentence}' if sentence.startswith('Y') else sentence):
        RawDataTorch.from_file(tmp_path / 'scan.npz')


def test_flat_patches_are_no_object(arrays: Arrays, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        raw = RawDataTorch.from_arrays(arrays | {'Y': np.ones((12, 18, 18), dtype=complex)})
    assert 'Y is the same number everywhere, which is no object' in caplog.text
    assert raw.Y is None
    assert raw.objectGuess is None


# Other keys and layouts


@pytest.mark.parametrize('layout', ['(n, H, W, 1)', '(H, W, n)'])
def test_other_layouts_and_names_are_read_and_logged(
    arrays: Arrays, scan: RawScan, tmp_path: Path, layout: str, caplog: pytest.LogCaptureFixture
) -> None:
    patterns = np.moveaxis(scan.counts, 0, -1) if layout == '(H, W, n)' else scan.counts[..., np.newaxis]
    given = arrays | {'diff3d': None, 'diffraction': patterns}
    np.savez(tmp_path / 'scan.npz', **{key: value for key, value in given.items() if value is not None}, more=3)
    with caplog.at_level(logging.INFO):
        from_file, from_arrays = RawDataTorch.from_file(tmp_path / 'scan.npz'), RawDataTorch.from_arrays(given)
    assert np.array_equal(from_file.scan.counts, scan.counts)
    assert np.array_equal(from_arrays.scan.counts, scan.counts)
    assert f'is read as {layout}' in caplog.text
    assert 'scan.npz: more mean nothing here and are not read' in caplog.text


def test_two_names_of_the_patterns_are_refused(arrays: Arrays, scan: RawScan, tmp_path: Path) -> None:
    np.savez(tmp_path / 'scan.npz', **arrays, diffraction=scan.counts)
    with pytest.raises(InputError, match='scan.npz: diff3d and diffraction are two names of the patterns'):
        RawDataTorch.from_file(tmp_path / 'scan.npz')
    with pytest.raises(InputError, match='diff3d and diffraction are two names of the patterns'):
        RawDataTorch.from_arrays(arrays | {'diffraction': scan.counts})


# Raw data by their arguments


def test_raw_data_are_made_of_their_arguments(arrays: Arrays, scan: RawScan) -> None:
    assert ptychopinn_torch_plugin.RawDataTorch is RawDataTorch
    assert ptychopinn_torch_plugin.PtychoDataContainerTorch is PtychoDataContainerTorch
    with pytest.raises(AttributeError, match='has no attribute'):
        ptychopinn_torch_plugin.__getattr__('RawDataTensorFlow')
    x, y = arrays['xcoords'], arrays['ycoords']
    positional = RawDataTorch(x, y, scan.counts, scan.probe[0], np.arange(12), None)
    assert np.array_equal(positional.scan_index, np.arange(12))
    without = RawDataTorch.from_coords_without_pc(x, y, scan.counts, scan.probe[0], np.zeros(12, dtype=int))
    for raw in (positional, without):
        assert np.array_equal(raw.xcoords_start, x)
        assert np.array_equal(raw.ycoords, y)
    assert np.array_equal(RawDataTorch(**arrays).ycoords_start, arrays['ycoords_start'])
    with pytest.raises(InputError, match='diff3d, probeGuess are missing'):
        RawDataTorch(x, y)
    with pytest.raises(InputError, match='counts has shape'):
        RawDataTorch(x, y, x, y)  # in the order of RawData, whose third argument is xcoords_start


def test_the_configuration_of_raw_data_groups_them(arrays: Arrays, caplog: pytest.LogCaptureFixture) -> None:
    names = {'N': 18, 'gridsize': 2, 'neighbor_count': 5, 'n_groups': 7, 'seed': 3, 'sequential_sampling': True}
    raw = RawDataTorch(**arrays, config=names)
    grouped = raw.generate_grouped_data()
    assert grouped.nn_indices.shape == (7, 4)
    assert grouped.nn_indices[:, 0].tolist() == list(range(7))
    assert np.array_equal(raw.generate_grouped_data(18, 5, 7, 2, 3, True).nn_indices, grouped.nn_indices)
    assert raw.generate_grouped_data(nsamples=2, gridsize=1).nn_indices.shape == (2, 1)
    with caplog.at_level(logging.INFO):
        other = RawDataTorch(**arrays).generate_grouped_data(config=names, dataset_path='cache.npz')
    assert np.array_equal(other.nn_indices, grouped.nn_indices)
    assert 'dataset_path is not used' in caplog.text
    with pytest.raises(InputError, match='N is 64 but the patterns have 18 x 18 pixels'):
        RawDataTorch(**arrays, config={'N': 64}).generate_grouped_data()


def test_raw_data_of_another_package_are_taken(arrays: Arrays, scan: RawScan) -> None:
    theirs = SimpleNamespace(**arrays, objectGuess=None, Y=None, scan_index=np.zeros(12), metadata={'a': 1})
    container = workflows._ensure_container(theirs, {'gridsize': 2})
    assert np.array_equal(container.scan.counts, scan.counts)
    assert np.array_equal(np.unique(container.nn_indices), np.arange(12))


# Tensors


def test_tensors_are_channels_first(scan: RawScan) -> None:
    import torch

    container = workflows.ensure_container(scan, {'gridsize': 2})
    tensors = container.as_tensors()
    groups = len(container)
    assert (tensors.X.shape, tensors.X.dtype) == ((groups, 4, 18, 18), torch.float32)
    assert (tensors.positions.shape, tensors.global_offsets.shape) == ((groups, 4, 1, 2), (groups, 1, 1, 2))
    assert (tensors.scale.shape, tensors.probe.dtype) == ((groups, 1, 1, 1), torch.complex64)
    measured = (tensors.X * tensors.scale)[1, 2].numpy()
    assert np.allclose(measured, np.sqrt(scan.counts[container.nn_indices[1, 2]]), atol=1e-4)
    x, y = (tensors.positions + tensors.global_offsets)[1, 2, 0].tolist()
    assert np.allclose([y, x], scan.positions[container.nn_indices[1, 2]], atol=1e-4)
    assert tensors.Y is not None
    assert container.Y is not None
    assert np.array_equal(tensors.Y[1, 2].numpy(), container.Y[1, :, :, 2])


def test_more_groups_than_the_memory_holds_are_refused(scan: RawScan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('ptychopinn_torch_plugin.compat.container.physical_memory', lambda: 1000)
    with pytest.raises(InputError, match='12 groups of 1 patterns need .* more than the memory'):
        _ = workflows.ensure_container(scan, {'gridsize': 1}).X
