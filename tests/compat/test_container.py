"""The container: contract names, shapes and values; and the process stays free of torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

from ptychopinn_torch_plugin.compat.container import GroupedScan, PtychoDataContainerTorch
from ptychopinn_torch_plugin.data.scan import RawScan, patch_bounds
from ptychopinn_torch_plugin.errors import InputError

ScanMaker = Callable[..., RawScan]
GROUPS = np.array([[0, 1, 5], [7, 11, 6]])


@pytest.fixture
def scan(scan_of: ScanMaker) -> RawScan:
    mask = np.zeros((18, 17), dtype=np.bool_)
    mask[4, 4] = True
    return scan_of(bad_pixels=mask)


def test_patterns_are_gathered_channels_last(scan: RawScan) -> None:
    container = PtychoDataContainerTorch.from_scan(scan, GROUPS)
    assert len(container) == 2
    assert container.X.shape == (2, 18, 17, 3)
    assert container.X.dtype == np.float32
    expected = np.where(scan.bad_pixels, 0, np.sqrt(scan.counts[6]))
    assert np.allclose(container.X[1, :, :, 2] * container.norm_Y_I, expected, rtol=1e-6)


def test_amplitudes_are_normalised_over_the_scan(scan: RawScan) -> None:
    all_positions = np.arange(scan.size)[:, np.newaxis]
    container = PtychoDataContainerTorch.from_scan(scan, all_positions)
    assert np.isclose((container.X**2).sum(axis=(1, 2)).mean(), 18 * 17 / 4, rtol=1e-5)


def test_square_patterns_start_at_the_scale_of_the_paper(scan_of: ScanMaker) -> None:
    scan = scan_of(shape=(16, 16))
    photons = scan.counts.sum(axis=(1, 2)).mean()
    assert np.isclose(PtychoDataContainerTorch.from_scan(scan, GROUPS).norm_Y_I, 2 * np.sqrt(photons) / 16)


def test_coordinates_are_x_first_and_add_up(scan: RawScan) -> None:
    container = PtychoDataContainerTorch.from_scan(scan, GROUPS)
    assert container.global_offsets.shape == (2, 1, 2, 1)
    assert container.local_offsets.shape == (2, 1, 2, 3)
    absolute = container.global_offsets + container.local_offsets
    assert np.allclose(absolute[1, 0, 0], scan.positions[GROUPS[1], 1])
    assert np.allclose(absolute[1, 0, 1], scan.positions[GROUPS[1], 0])
    assert np.allclose(container.local_offsets.mean(axis=-1), 0)
    for name in ('coords_nominal', 'coords_true', 'coords'):
        assert getattr(container, name) is container.local_offsets


def test_object_patches_are_those_the_positions_see(scan: RawScan) -> None:
    container = PtychoDataContainerTorch.from_scan(scan, GROUPS)
    (top, left), _ = (part[11] for part in patch_bounds(scan.positions, scan.pattern_shape))
    assert container.Y is not None
    assert np.array_equal(container.Y[1, :, :, 1], scan.object_guess[top : top + 18, left : left + 17])
    assert container.Y_I is not None
    assert container.Y_phi is not None
    assert np.allclose(container.Y_I * np.exp(1j * container.Y_phi), container.Y, atol=1e-5)
    assert container.YY_full is scan.object_guess


def test_patches_over_the_edge_are_filled_with_vacuum(scan_of: ScanMaker) -> None:
    positions = np.tile([[0.0, 40.0]], (12, 1))
    scan = scan_of(positions=positions, object_guess=np.full((20, 36), 2j, dtype=np.complex64))
    scan.object_guess[0, 0] = 3
    patches = PtychoDataContainerTorch.from_scan(scan, GROUPS).Y
    assert patches is not None
    # corner (-9, 32): rows 0-8 and columns 4-16 of the patch lie outside the grid of 20 x 36
    assert (patches[:, :9] == 1).all()
    assert (patches[:, :, 4:] == 1).all()
    assert (patches[:, 9:, :4] == 2j).all()


def test_a_flat_object_is_no_reference(scan_of: ScanMaker) -> None:
    container = PtychoDataContainerTorch.from_scan(scan_of(object_guess=np.full((40, 40), 1j)), GROUPS)
    assert container.Y is None
    assert container.Y_I is None
    assert container.Y_phi is None
    assert container.YY_full is None


def test_nothing_is_computed_before_it_is_asked_for(scan: RawScan) -> None:
    container = PtychoDataContainerTorch.from_scan(scan, GROUPS)
    assert container.scan is scan
    assert container.probe is scan.probe
    assert container.nn_indices.dtype == np.int32
    assert container.nn_indices.tolist() == GROUPS.tolist()
    assert 'X' not in vars(container)
    assert container.X is container.X


def test_the_mapping_has_the_contract_keys(scan: RawScan) -> None:
    grouped = GroupedScan(scan, GROUPS)
    shapes = {key: np.asarray(grouped[key]).shape for key in grouped}
    assert shapes == {
        'diffraction': (2, 18, 17, 3),
        'X_full': (2, 18, 17, 3),
        'Y': (2, 18, 17, 3),
        'coords_offsets': (2, 1, 2, 1),
        'coords_relative': (2, 1, 2, 3),
        'coords_nn': (2, 1, 2, 3),
        'coords_start_offsets': (2, 1, 2, 1),
        'coords_start_relative': (2, 1, 2, 3),
        'coords_start_nn': (2, 1, 2, 3),
        'nn_indices': (2, 3),
        'objectGuess': scan.object_shape,
        'bad_pixels': (18, 17),
    }
    assert len(grouped) == 12
    with pytest.raises(KeyError):
        grouped['Z']


def test_plain_arrays_make_the_same_container(scan_of: ScanMaker) -> None:
    scan = scan_of()
    all_positions = np.arange(12).reshape(6, 2)
    lazy = PtychoDataContainerTorch.from_scan(scan, all_positions)
    plain = PtychoDataContainerTorch(dict(GroupedScan(scan, all_positions)), scan.probe[0])
    assert plain.probe.shape == (18, 17)
    assert plain.Y is not None
    assert lazy.Y is not None
    assert np.array_equal(plain.Y, lazy.Y)
    assert np.array_equal(plain.local_offsets, lazy.local_offsets)
    assert len(plain) == 6
    # every pattern is in one group, so the mean over the groups is the mean over the scan
    assert np.isclose(plain.norm_Y_I, lazy.norm_Y_I)
    assert np.allclose(plain.X, lazy.X, rtol=1e-5)
    with pytest.raises(InputError, match='has no scan: make it with from_scan'):
        _ = plain.scan


@pytest.mark.parametrize(
    ('groups', 'sentence'),
    [
        (np.array([0, 1]), r'nn_indices has shape \(2,\)'),
        (np.array([[0.0]]), 'dtype float64'),
        (np.zeros((0, 2), dtype=int), r'shape \(0, 2\)'),
        (np.array([[0, 12]]), 'from 0 to 12 but the scan has positions 0 to 11'),
        (np.array([[-1, 2]]), 'from -1 to 2'),
    ],
)
def test_wrong_groups_are_refused(scan: RawScan, groups: np.ndarray, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        PtychoDataContainerTorch.from_scan(scan, groups)


def test_incomplete_groups_are_refused(scan: RawScan) -> None:
    with pytest.raises(InputError, match='lack diffraction, coords_offsets, coords_relative, nn_indices'):
        PtychoDataContainerTorch({}, scan.probe)


def test_the_data_package_is_light() -> None:
    code = (
        'import sys\n'
        'from ptychopinn_torch_plugin.compat import container\n'
        'from ptychopinn_torch_plugin.data import grouping, scan, validation\n'
        'from ptychopinn_torch_plugin.data.io import archive, npz, product, workflow_folder\n'
        "heavy = {'torch', 'lightning', 'ptychodus', 'PyQt5', 'h5py'} & {name.split('.')[0] for name in sys.modules}\n"
        'sys.exit(f"imported {heavy}" if heavy else 0)\n'
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
