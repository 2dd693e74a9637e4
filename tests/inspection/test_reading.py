"""Raw data from files of several kinds, and one sentence for each that cannot be used."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from ptychopinn_torch_plugin.data.io.conversion import BeamGeometry
from ptychopinn_torch_plugin.data.io.npz import write_training_npz
from ptychopinn_torch_plugin.errors import InputError
from ptychopinn_torch_plugin.inspection.reading import ELECTRONVOLT_J, read_measurement
from tests.helpers.scans import make_scan

BEAM = BeamGeometry(photon_energy_ev=1e4, detector_distance_m=1.0, detector_pixel_m=(55e-6, 55e-6))


def arrays(count: int = 9) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.poisson(3.0, (count, 32, 32)), rng.uniform(-1e-6, 1e-6, (count, 2))


def test_an_archive_holds_patterns_and_positions_under_any_name(tmp_path: Path) -> None:
    counts, positions = arrays()
    np.savez(tmp_path / 'raw.npz', reciprocal=counts, position=positions, energy=np.array(1.0))
    found = read_measurement(tmp_path / 'raw.npz', BEAM)
    pixel = 1.239841984e-10 / (32 * 55e-6)
    np.testing.assert_allclose(found.positions, positions / pixel)
    np.testing.assert_array_equal(found.counts, counts)
    assert found.probe is None
    assert found.geometry.object_pixel_m == pytest.approx((pixel, pixel))


def test_positions_in_pixels_need_no_geometry(tmp_path: Path) -> None:
    counts, positions = arrays()
    np.savez(tmp_path / 'raw.npz', a=counts, b=positions * 1e7)
    np.testing.assert_allclose(read_measurement(tmp_path / 'raw.npz').positions, positions * 1e7)


def test_a_training_file_brings_its_probe(tmp_path: Path) -> None:
    scan, _ = make_scan(rows=3)
    write_training_npz(tmp_path / 'scan.npz', scan)
    found = read_measurement(tmp_path / 'scan.npz')
    assert found.probe is not None
    np.testing.assert_allclose(found.probe, scan.probe)


def test_a_workflow_folder_brings_geometry_and_probe(workflow_folder: Path) -> None:
    found = read_measurement(workflow_folder)
    assert found.probe is not None and found.bad_pixels[3, 5]
    assert found.geometry.photon_energy_ev == pytest.approx(8800.0)
    assert not found.says_near_field


def cxi(path: Path, *, with_positions: bool = True) -> Path:
    counts, positions = arrays()
    with h5py.File(path, 'w') as file:
        detector = file.create_group('entry_1/instrument_1/detector_1')
        detector['data'] = counts
        detector['mask'] = np.eye(32, dtype=np.uint32)
        detector['distance'], detector['x_pixel_size'], detector['y_pixel_size'] = 1.0, 55e-6, 55e-6
        file['entry_1/instrument_1/source_1/energy'] = 1e4 * ELECTRONVOLT_J
        if with_positions:
            file['entry_1/sample_1/geometry_1/translation'] = np.c_[positions[:, ::-1], np.zeros(9)]
    return path


def test_a_cxi_file_brings_mask_and_beam(tmp_path: Path) -> None:
    found = read_measurement(cxi(tmp_path / 'scan.cxi'))
    _, positions = arrays()
    pixel = found.geometry.object_pixel_m
    assert pixel is not None
    np.testing.assert_allclose(found.positions * pixel[0], positions, rtol=1e-6)
    assert found.geometry.photon_energy_ev == pytest.approx(1e4)
    np.testing.assert_array_equal(found.bad_pixels, np.eye(32, dtype=np.bool_))


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    counts, positions = arrays()
    np.savez(tmp_path / 'two.npz', a=counts, b=counts, c=positions)
    np.savez(tmp_path / 'none.npz', a=counts)
    np.savez(tmp_path / 'metres.npz', a=counts, b=positions)
    (tmp_path / 'text.txt').write_text('x')
    (tmp_path / 'empty.cxi').write_bytes(b'')
    for name, message in (
        ('two.npz', 'holds 2 arrays of three axes'),
        ('none.npz', r'holds 0 arrays of shape \(9, 2\)'),
        ('metres.npz', 'the positions are in metres, and the size of an object pixel is unknown'),
        ('text.txt', 'is no scan'),
        ('missing.cxi', 'does not exist'),
        ('empty.cxi', 'cannot be read as a CXI file'),
    ):
        with pytest.raises(InputError, match=message):
            read_measurement(tmp_path / name)
    with pytest.raises(InputError, match='translation'):
        read_measurement(cxi(tmp_path / 'still.cxi', with_positions=False))
