"""Training files: counts and amplitudes, the host's export, and damaged or hostile files."""

from __future__ import annotations

import io
import logging
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt
import pytest
from ptychodus.api.io import save_ptychopinn_training_data

from ptychopinn_torch_plugin import limits
from ptychopinn_torch_plugin.data.io import archive
from ptychopinn_torch_plugin.data.io.npz import read_training_npz, write_training_npz
from ptychopinn_torch_plugin.data.io.workflow_folder import load_workflow_folder, read_workflow_folder
from ptychopinn_torch_plugin.data.scan import RawScan
from ptychopinn_torch_plugin.errors import InputError

ScanMaker = Callable[..., RawScan]
READ_LOGGER = 'ptychopinn_torch_plugin.data'


def save(path: Path, scan: RawScan, diff3d: np.ndarray, **changes: object) -> Path:
    """Write a file as PtychoPINN has it, with another ``diff3d``; a change of None leaves the key out."""
    keys: dict[str, Any] = {
        'xcoords': scan.positions[:, 1],
        'ycoords': scan.positions[:, 0],
        'xcoords_start': scan.positions[:, 1],
        'ycoords_start': scan.positions[:, 0],
        'diff3d': diff3d,
        'probeGuess': scan.probe[0],
        'objectGuess': scan.object_guess,
        'scan_index': np.zeros(scan.size, dtype=int),
    }
    keys.update(changes)
    np.savez_compressed(path, **{key: value for key, value in keys.items() if value is not None})
    return path


@pytest.mark.parametrize('dtype', [np.uint16, np.int32, np.float32])
def test_what_is_written_comes_back(scan_of: ScanMaker, tmp_path: Path, dtype: npt.DTypeLike) -> None:
    mask = np.zeros((18, 17), dtype=np.bool_)
    mask[2, 3] = True
    probe = np.stack([np.ones((18, 17)), np.full((18, 17), 0.5j)]).astype(np.complex64)
    counts = scan_of().counts.astype(dtype)
    scan = scan_of(counts=counts, bad_pixels=mask, probe=probe, fresnel_numbers=(1e-5, 2e-5)).with_pixel((2e-8, 3e-8))
    write_training_npz(tmp_path / 'train', scan)
    assert [file.name for file in tmp_path.iterdir()] == ['train']
    back = read_training_npz(tmp_path / 'train')
    for name in ('counts', 'positions', 'probe', 'bad_pixels', 'object_guess'):
        assert np.array_equal(getattr(back, name), getattr(scan, name)), name
        assert getattr(back, name).dtype == getattr(scan, name).dtype
    assert back.fresnel_numbers == scan.fresnel_numbers
    assert back.pixel_m == scan.pixel_m == (2e-8, 3e-8)
    assert scan.with_pixel((0.0, 3e-8)).pixel_m is None


def test_a_failed_write_leaves_nothing(scan_of: ScanMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(stream: BinaryIO, **_: object) -> None:
        stream.write(b'half')
        raise OSError('disk full')

    monkeypatch.setattr(np, 'savez', fail)
    with pytest.raises(OSError, match='disk full'):
        write_training_npz(tmp_path / 'train.npz', scan_of())
    assert list(tmp_path.iterdir()) == []


def test_the_export_of_the_host_is_the_same_scan(workflow_folder: Path) -> None:
    save_ptychopinn_training_data(workflow_folder / 'train.npz', load_workflow_folder(workflow_folder))
    from_folder, from_file = read_workflow_folder(workflow_folder), read_training_npz(workflow_folder / 'train.npz')
    good = ~from_folder.bad_pixels
    assert np.array_equal(from_file.counts[:, good], from_folder.counts[:, good])
    for name in ('positions', 'probe', 'bad_pixels', 'object_guess'):
        assert np.array_equal(getattr(from_file, name), getattr(from_folder, name)), name


@pytest.mark.parametrize('dtype', [np.float16, np.float32, np.float64])
@pytest.mark.parametrize('mean', [0.05, 3.0])
def test_amplitudes_are_found_and_squared_to_the_very_counts(
    scan_of: ScanMaker, tmp_path: Path, caplog: pytest.LogCaptureFixture, dtype: npt.DTypeLike, mean: float
) -> None:
    scan = scan_of(
        mean=mean, counts=np.random.default_rng(0).poisson(mean, size=(12, 18, 17)) + (np.arange(17) == 3) * 2
    )
    path = save(tmp_path / 'a.npz', scan, np.sqrt(scan.counts).astype(dtype))
    with caplog.at_level(logging.INFO, READ_LOGGER):
        back = read_training_npz(path)
    assert np.array_equal(back.counts, scan.counts)
    assert back.counts.dtype == (np.float64 if dtype == np.float64 else np.float32)
    assert 'read as amplitudes and squared: the squares of its values are whole numbers' in caplog.text


def test_bright_amplitudes_are_found_by_their_faint_pixels(scan_of: ScanMaker, tmp_path: Path) -> None:
    counts = np.random.default_rng(0).poisson(np.geomspace(1, 1e7, 17), size=(12, 18, 17))
    back = read_training_npz(save(tmp_path / 'a.npz', scan_of(), np.sqrt(counts).astype(np.float32)))
    assert np.allclose(back.counts, counts, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ('dtype', 'rule'), [(np.uint8, 'its dtype uint8 is an integer'), (np.float32, 'all its values are whole numbers')]
)
def test_counts_are_found(
    scan_of: ScanMaker, tmp_path: Path, caplog: pytest.LogCaptureFixture, dtype: npt.DTypeLike, rule: str
) -> None:
    counts = scan_of().counts.astype(dtype)
    with caplog.at_level(logging.INFO, READ_LOGGER):
        back = read_training_npz(save(tmp_path / 'c.npz', scan_of(), counts))
    assert back.counts.dtype == dtype
    assert np.array_equal(back.counts, counts)
    assert rule in caplog.text


def test_only_good_pixels_are_tested(scan_of: ScanMaker, tmp_path: Path) -> None:
    counts = scan_of().counts.astype(np.float32)
    counts[:, 0, 0] = 0.37
    mask = np.zeros((18, 17), dtype=np.bool_)
    mask[0, 0] = True
    assert read_training_npz(save(tmp_path / 'c.npz', scan_of(), counts, bad_pixels=mask)).counts.dtype == np.float32
    with pytest.raises(InputError, match='does not tell whether'):
        read_training_npz(save(tmp_path / 'd.npz', scan_of(), counts))


@pytest.mark.parametrize(('stated', 'power'), [('counts', 1), ('amplitude', 2)])
def test_the_undecidable_must_be_told(
    scan_of: ScanMaker, tmp_path: Path, stated: Literal['counts', 'amplitude'], power: int
) -> None:
    smooth = np.random.default_rng(0).uniform(0, 9, size=(12, 18, 17)).astype(np.float32)
    path = save(tmp_path / 's.npz', scan_of(), smooth)
    with pytest.raises(InputError, match="say which, 'counts' or 'amplitude'"):
        read_training_npz(path)
    assert np.allclose(read_training_npz(path, counts_are=stated).counts, smooth**power)


def test_little_evidence_decides_nothing(scan_of: ScanMaker, tmp_path: Path) -> None:
    sparse = np.zeros((12, 18, 17), dtype=np.float32)
    sparse[0, 0, :10] = np.sqrt(2)
    with pytest.raises(InputError, match='does not tell'):
        read_training_npz(save(tmp_path / 's.npz', scan_of(), sparse))


def test_negative_values_are_no_amplitudes(scan_of: ScanMaker, tmp_path: Path) -> None:
    path = save(tmp_path / 'n.npz', scan_of(), np.full((12, 18, 17), -1.5))
    with pytest.raises(InputError, match='negative values, so it does not hold amplitudes'):
        read_training_npz(path, counts_are='amplitude')


def test_object_and_mask_may_be_absent(scan_of: ScanMaker, tmp_path: Path) -> None:
    back = read_training_npz(save(tmp_path / 'o.npz', scan_of(), scan_of().counts, objectGuess=None, scan_index=None))
    assert (back.object_guess == 1).all()
    assert not back.bad_pixels.any()


def test_several_scan_indices_are_reported(
    scan_of: ScanMaker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read_training_npz(save(tmp_path / 'i.npz', scan_of(), scan_of().counts, scan_index=np.arange(12) // 6))
    assert 'scan_index has 2 different values' in caplog.text


@pytest.mark.parametrize('key', ['diff3d', 'xcoords', 'ycoords', 'probeGuess'])
def test_missing_keys_are_named(scan_of: ScanMaker, tmp_path: Path, key: str) -> None:
    changes: dict[str, Any] = {key: None} if key != 'diff3d' else {}
    path = save(tmp_path / 'm.npz', scan_of(), scan_of().counts, **changes)
    if key == 'diff3d':
        path = tmp_path / 'n.npz'
        np.savez(path, xcoords=np.ones(3), ycoords=np.ones(3), probeGuess=np.ones((18, 17), dtype=complex))
    with pytest.raises(InputError, match=f'lacks {key}: a training file holds'):
        read_training_npz(path)


@pytest.mark.parametrize(
    ('changes', 'sentence'),
    [
        ({'xcoords': np.ones(11)}, r'xcoords \(11,\) and ycoords \(12,\)'),
        ({'probeGuess': np.ones((18, 17))}, 'probe has dtype float64'),
        ({'objectGuess': np.ones((3, 40, 40), dtype=complex)}, 'object_guess has 3 layers'),
        ({'fresnel_numbers': np.float64(3.0)}, 'fresnel_numbers is'),
        ({'objectGuess': np.array([object()])}, 'objectGuess as a pickled object, which is never unpickled'),
    ],
)
def test_unusable_arrays_are_refused_with_the_file(
    scan_of: ScanMaker, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    if 'objectGuess' in changes and changes['objectGuess'].dtype == object:
        changes = {'objectGuess': np.array([{}], dtype=object)}
    path = save(tmp_path / 'u.npz', scan_of(), scan_of().counts, **changes)
    with pytest.raises(InputError, match=sentence) as caught:
        read_training_npz(path)
    assert str(path) in str(caught.value)


def test_missing_and_foreign_files_are_named(scan_of: ScanMaker, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r'none\.npz does not exist'):
        read_training_npz(tmp_path / 'none.npz')
    (tmp_path / 'text.npz').write_bytes(b'not a zip' * 50)
    with pytest.raises(InputError, match=r'text\.npz cannot be read as an NPZ archive'):
        read_training_npz(tmp_path / 'text.npz')
    whole = save(tmp_path / 'whole.npz', scan_of(), scan_of().counts).read_bytes()
    (tmp_path / 'half.npz').write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r'half\.npz cannot be read as an NPZ archive'):
        read_training_npz(tmp_path / 'half.npz')
    damaged = bytearray(whole)
    with zipfile.ZipFile(tmp_path / 'whole.npz') as zipped:
        info = zipped.getinfo('diff3d.npy')
    middle = info.header_offset + info.compress_size // 2
    damaged[middle : middle + 40] = bytes(40)
    (tmp_path / 'damaged.npz').write_bytes(damaged)
    with pytest.raises(InputError, match=r'damaged\.npz'):
        read_training_npz(tmp_path / 'damaged.npz')


def npy_header(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {'descr': '<u2', 'fortran_order': False, 'shape': shape})
    return stream.getvalue()


def test_a_header_that_declares_more_than_the_archive_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / 'b.npz', 'w') as zipped:
        zipped.writestr('diff3d.npy', npy_header((10**6, 4096, 4096)) + bytes(100))
    with pytest.raises(InputError, match='for diff3d but its shape'):
        archive.read_headers(tmp_path / 'b.npz')


def test_sizes_that_no_compression_reaches_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / 'b.npz', 'w', zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr('diff3d.npy', npy_header((100, 1000, 1000)) + bytes(100))
    content = (tmp_path / 'b.npz').read_bytes()
    stored = len(npy_header((100, 1000, 1000))) + 100
    declared = stored - 100 + 2 * 10**8
    (tmp_path / 'b.npz').write_bytes(content.replace(stored.to_bytes(4, 'little'), declared.to_bytes(4, 'little')))
    with pytest.raises(InputError, match='more than compression can reach'):
        archive.read_headers(tmp_path / 'b.npz')


def test_more_than_the_memory_is_refused_before_it_is_unpacked(
    scan_of: ScanMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / 'l.npz', scan_of(), scan_of().counts)
    monkeypatch.setattr('ptychopinn_torch_plugin.storage.checked_files.physical_memory', lambda: 1000)
    monkeypatch.setattr(np, 'load', lambda *_, **__: pytest.fail('the archive was unpacked'))
    with pytest.raises(InputError, match='of memory of this machine'):
        read_training_npz(path)


def test_the_memory_of_this_machine_is_known() -> None:
    assert limits.physical_memory() > 2**28


@pytest.mark.parametrize(
    'read',
    [read_training_npz, archive.read_headers, lambda path: archive.holds_array(path, 'diff3d')],
    ids=['scan', 'headers', 'contents'],
)
def test_what_is_no_file_is_refused_without_waiting(read: Callable[[Path], object], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / 'pipe.npz')
    with pytest.raises(InputError, match=r'pipe\.npz is a FIFO'):
        read(tmp_path / 'pipe.npz')


def test_a_sparse_file_of_terabytes_is_refused(tmp_path: Path) -> None:
    with (tmp_path / 'sparse.npz').open('wb') as file:
        file.truncate(7 * 10**12)
    with pytest.raises(InputError, match='cannot be read as an NPZ archive'):
        read_training_npz(tmp_path / 'sparse.npz')
