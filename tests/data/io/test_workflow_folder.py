"""Workflow folders, good and damaged, and the real scan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from ptychopinn_torch_plugin.data.io.workflow_folder import load_workflow_folder, read_workflow_folder
from ptychopinn_torch_plugin.data.scan import patch_bounds
from ptychopinn_torch_plugin.errors import InputError


def test_a_folder_becomes_a_scan(workflow_folder: Path) -> None:
    scan = read_workflow_folder(workflow_folder)
    assert (scan.size, scan.pattern_shape, str(scan.counts.dtype)) == (6, (32, 32), 'uint16')
    assert np.argwhere(scan.bad_pixels).tolist() == [[3, 5]]
    assert scan.fresnel_numbers[0] > 0


def test_the_input_is_that_of_the_host(workflow_folder: Path) -> None:
    parameters = load_workflow_folder(workflow_folder)
    assert len(parameters.product.probe_positions) == len(parameters.diffraction_patterns) == 6


@pytest.mark.parametrize('name', ['diffraction.h5', 'product.h5'])
@pytest.mark.parametrize(
    ('damage', 'sentence'),
    [
        (lambda file: file.unlink(), 'does not exist: a workflow folder holds diffraction.h5 and product.h5'),
        (lambda file: file.write_bytes(b'no HDF5 at all' * 100), 'cannot be read as HDF5'),
        (lambda file: file.write_bytes(b''), 'cannot be read as HDF5'),
        (lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]), 'cannot be read as HDF5'),
        (lambda file: h5py.File(file, 'w').close(), 'lacks something Ptychodus writes'),
    ],
    ids=['missing', 'garbage', 'empty', 'truncated', 'other'],
)
def test_damaged_files_are_named(
    workflow_folder: Path, name: str, damage: Callable[[Path], object], sentence: str
) -> None:
    damage(workflow_folder / name)
    with pytest.raises(InputError, match=sentence) as caught:
        read_workflow_folder(workflow_folder)
    assert str(workflow_folder / name) in str(caught.value)


def test_a_dataset_of_another_kind_is_refused(workflow_folder: Path) -> None:
    with h5py.File(workflow_folder / 'product.h5', 'a') as file:
        del file['object']
        file.create_group('object')
    with pytest.raises(InputError, match=r'product\.h5 is not read, because object is no data set'):
        read_workflow_folder(workflow_folder)


def test_files_of_two_scans_do_not_go_together(workflow_folder: Path) -> None:
    with h5py.File(workflow_folder / 'diffraction.h5', 'a') as file:
        file['indexes'][...] = np.arange(6) + 1000
    with pytest.raises(InputError, match='do not go together'):
        read_workflow_folder(workflow_folder)


@pytest.mark.parametrize('suffix', ['product.h5', 'product_refined_probe.h5'])
def test_the_real_scan(real_scan_folder: Path, tmp_path: Path, suffix: str) -> None:
    (tmp_path / 'diffraction.h5').symlink_to(real_scan_folder / 'diffraction.h5')
    (tmp_path / 'product.h5').symlink_to(real_scan_folder / suffix)
    scan = read_workflow_folder(tmp_path)
    assert (scan.size, scan.pattern_shape, str(scan.counts.dtype)) == (516, (128, 128), 'uint16')
    assert scan.name == 'siemens_star'
    patch_origins, _ = patch_bounds(scan.positions, scan.pattern_shape)
    assert (patch_origins >= 0).all()
    assert (patch_origins + 128 <= scan.object_shape).all()
