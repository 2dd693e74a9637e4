"""Patterns that are too large for the memory stay on the disk, in their file or in a copy that is removed."""

from __future__ import annotations

import gc
import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from ptychopinn_torch_plugin.cli.inputs import load_scan
from ptychopinn_torch_plugin.data.io import large_patterns
from ptychopinn_torch_plugin.data.io.workflow_folder import load_workflow_folder
from ptychopinn_torch_plugin.demo.simulate import ScanPlan, simulate_scan
from ptychopinn_torch_plugin.errors import InputError


@pytest.fixture(scope='module')
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('scan')
    simulate_scan(folder, ScanPlan(rows=5, columns=5, pattern_shape=(32, 32)))
    return folder


@pytest.fixture
def scan(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workflow folder whose patterns count as large, and a folder for temporary files."""
    monkeypatch.setattr(large_patterns, 'memory_limit', lambda: 1000)
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'temporary'))
    (tmp_path / 'temporary').mkdir()
    return Path(shutil.copytree(written, tmp_path / 'scan'))


def rewrite(file: Path, change: Callable[[h5py.File, np.ndarray], None]) -> None:
    """Replace the patterns of a file by what ``change`` writes."""
    with h5py.File(file, 'r+') as content:
        attributes, values = dict(content['patterns'].attrs), content['patterns'][()]
        del content['patterns']
        change(content, values)
        content['patterns'].attrs.update(attributes)


def contiguous(content: h5py.File, values: np.ndarray) -> None:
    content.create_dataset('patterns', data=values)


def stays_on_disk(folder: Path) -> bool:
    """Load a scan both ways, compare them, and return whether the patterns of one stay on the disk."""
    expected = load_workflow_folder(folder)
    loaded = load_scan(folder, large_on_disk=True)
    counts: object = loaded.scan.counts
    np.testing.assert_array_equal(np.asarray(counts), expected.diffraction_patterns)
    assert loaded.scan.counts.dtype == expected.diffraction_patterns.dtype
    assert loaded.parameters is not None
    positions = [point.index for point in expected.product.probe_positions]
    assert [point.index for point in loaded.parameters.product.probe_positions] == positions
    return not isinstance(counts, np.ndarray)


def test_patterns_without_compression_are_read_from_their_file(scan: Path, caplog: pytest.LogCaptureFixture) -> None:
    rewrite(scan / 'diffraction.h5', contiguous)
    with caplog.at_level(logging.INFO):
        assert stays_on_disk(scan)
    assert 'they are read from it block by block' in caplog.text
    assert not list(Path(tempfile.gettempdir()).iterdir())


def test_patterns_are_paired_with_positions(scan: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Patterns without a position, or without a number, are left out."""
    rewrite(scan / 'diffraction.h5', contiguous)
    with h5py.File(scan / 'diffraction.h5', 'r+') as content:
        content['indexes'][3] = -1
        content['indexes'][20:] += 100
    with caplog.at_level(logging.WARNING):
        assert stays_on_disk(scan)
    assert caplog.text.count('5 of 24 patterns have no position') == 2


def test_compressed_patterns_are_copied_and_the_copy_is_removed(scan: Path) -> None:
    loaded = load_scan(scan, large_on_disk=True)
    (copy,) = Path(tempfile.gettempdir()).iterdir()
    assert copy.stat().st_size == 25 * 32 * 32 * 4
    np.testing.assert_array_equal(loaded.scan.counts[np.arange(25)], load_workflow_folder(scan).diffraction_patterns)
    part = loaded.scan.counts[3:]
    del loaded
    gc.collect()
    assert part[0].shape == (32, 32)
    del part
    gc.collect()
    assert not copy.exists()


def test_a_disk_without_room_is_an_error(scan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: SimpleNamespace(free=5000))
    with pytest.raises(InputError, match='compressed patterns, too many for the memory, and .* has no room for a copy'):
        load_scan(scan, large_on_disk=True)
    assert not list(Path(tempfile.gettempdir()).iterdir())


def test_a_damaged_file_leaves_no_copy(scan: Path) -> None:
    with h5py.File(scan / 'diffraction.h5') as content:
        chunk = content['patterns'].id.get_chunk_info(0)
    with (scan / 'diffraction.h5').open('r+b') as stream:
        stream.seek(chunk.byte_offset)
        stream.write(b'\xff' * chunk.size)
    with pytest.raises(InputError, match='diffraction.h5 cannot be read as HDF5'):
        load_scan(scan, large_on_disk=True)
    assert not list(Path(tempfile.gettempdir()).iterdir())


def test_small_patterns_are_read_into_memory(written: Path) -> None:
    assert not stays_on_disk(written)
