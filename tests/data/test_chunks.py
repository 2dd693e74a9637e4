"""Patterns in a file: they are indexed like an array, read ahead, and never all in memory."""

from __future__ import annotations

import concurrent.futures
import os
import pickle
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ptychopinn_torch_plugin.config import parse_config
from ptychopinn_torch_plugin.data import chunks
from ptychopinn_torch_plugin.data.chunks import PatternFile
from ptychopinn_torch_plugin.data.scan import RawScan, make_raw_scan
from ptychopinn_torch_plugin.engines.pipeline import refine
from ptychopinn_torch_plugin.errors import InputError
from tests.helpers.scans import make_scan

SHAPE = (50, 16, 18)
OFFSET = 77


@pytest.fixture
def array() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2**16, SHAPE).astype('>u2')


@pytest.fixture
def file(array: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PatternFile:
    """The array in a file, in blocks of seven patterns."""
    monkeypatch.setattr(chunks, 'BLOCK_BYTES', 7 * array[0].nbytes + 1)
    path = tmp_path / 'patterns.bin'
    path.write_bytes(b'x' * OFFSET + array.tobytes())
    return PatternFile(path, array.dtype, SHAPE, OFFSET)


@pytest.mark.parametrize(
    'key',
    [
        slice(None),
        slice(5, 40),
        slice(1, None, 2),
        slice(60, 70),
        3,
        np.int64(-1),
        np.array([4, 5, 6, 7, 8, 9, 21]),
        np.array([0, 49]),
        np.array([40, 3, 3, 12]),
        np.arange(0),
        np.arange(50) % 3 == 1,
        (slice(3, 30), slice(4, 12), slice(2, 17, 3)),
        (np.array([1, 2]), slice(4, 12)),
    ],
    ids=str,
)
def test_it_is_indexed_like_an_array(key: object, file: PatternFile, array: np.ndarray) -> None:
    assert file.shape == SHAPE
    assert file.nbytes == array.nbytes
    found, expected = file[key], array[key]  # type: ignore[call-overload] # every kind of key
    assert found.shape == expected.shape
    np.testing.assert_array_equal(np.asarray(found), expected)
    assert isinstance(found, PatternFile) == (
        isinstance(key, slice) or (isinstance(key, tuple) and isinstance(key[0], slice))
    )


def test_views_of_views(file: PatternFile, array: np.ndarray) -> None:
    view = pickle.loads(pickle.dumps(file[3:, 2:14, 1:][1::2].select(np.array([0, 4, 9]))[:, 1::2]))  # noqa: S301
    np.testing.assert_array_equal(np.asarray(view, dtype=np.float32), array[3:, 2:14, 1:][1::2][[0, 4, 9], 1::2])


def test_the_next_block_is_read_ahead_and_a_lost_file_is_an_error(file: PatternFile, array: np.ndarray) -> None:
    np.testing.assert_array_equal(file[np.arange(3)], array[:3])
    concurrent.futures.wait(file._file._blocks.values())
    file.path.unlink()
    np.testing.assert_array_equal(file[np.arange(9)], array[:9])
    with pytest.raises(InputError, match='patterns.bin cannot be read any more'):
        file[np.arange(20, 25)]


def test_a_file_that_is_too_short_is_an_error(file: PatternFile) -> None:
    os.truncate(file.path, file.path.stat().st_size - 1)
    assert file[np.arange(40)].shape == (40, *SHAPE[1:])
    with pytest.raises(InputError, match='patterns.bin ends within pattern 49'):
        file[np.array([49])]


def test_a_forked_process_reads_on_its_own(file: PatternFile, array: np.ndarray) -> None:
    file[np.arange(5)]
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(file[np.arange(20)], array[:20]) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_memory_does_not_grow_with_the_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, 'BLOCK_BYTES', 2**17)
    path = tmp_path / 'patterns.bin'
    shape = 2**10, 64, 64
    with path.open('wb') as stream:
        stream.truncate(8 * 2**22)
    file = PatternFile(path, 'float64', shape)
    tracemalloc.start()
    for first in range(0, shape[0], 16):
        file[np.arange(first, first + 16)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    blocks = 2 * (os.cpu_count() or 1) + chunks.READING_THREADS + 2
    assert peak < blocks * 2**17 + 4 * 16 * 2**15 < file.nbytes


def in_file(scan: RawScan, path: Path) -> RawScan:
    """The scan with its patterns in a file."""
    path.write_bytes(np.asarray(scan.counts).tobytes())
    return make_raw_scan(
        PatternFile(path, scan.counts.dtype, scan.counts.shape),
        scan.positions,
        scan.probe,
        object_guess=scan.object_guess,
        bad_pixels=scan.bad_pixels,
        name=scan.name,
    )


def test_a_scan_in_a_file_is_refined_like_one_in_memory(tmp_path: Path) -> None:
    """With empty patterns, half scans and a search, which take subsets and a part of the detector."""
    scan = make_scan(rows=5)[0]
    scan.counts[[3, 4]] = 0
    mapped = in_file(scan, tmp_path / 'patterns.bin')
    assert type(mapped.counts).__name__ == 'PatternFile'
    assert mapped.empty.tolist() == [3, 4]
    config = parse_config(
        {
            'refinement': {'refine_epochs': 3, 'refine_geometry': True},
            'inference': {'half_scans': True, 'threads': 1, 'batch_size': 8},
        }
    )
    expected, found = (refine(one, config) for one in (replace(scan, empty=mapped.empty), mapped))
    np.testing.assert_array_equal(found.object_array, expected.object_array)
    np.testing.assert_array_equal(found.positions, expected.positions)
