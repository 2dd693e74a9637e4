"""HDF5 files that lead out of themselves, never end, or crash the library."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest

from ptychopinn_torch_plugin.data.io import hdf5
from ptychopinn_torch_plugin.data.io.hdf5 import read_hdf5
from ptychopinn_torch_plugin.data.io.workflow_folder import read_diffraction_header, read_workflow_folder
from ptychopinn_torch_plugin.errors import InputError
from tests.fuzz import hostile_hdf5


@pytest.mark.parametrize('case', hostile_hdf5.CASES)
def test_hostile_files_are_refused(case: str, workflow_folder: Path) -> None:
    make, word = hostile_hdf5.CASES[case]
    make(workflow_folder)
    begin = time.monotonic()
    with pytest.raises(InputError, match=word) as caught:
        read_workflow_folder(workflow_folder)
    assert str(caught.value).startswith(str(workflow_folder / 'diffraction.h5'))
    assert time.monotonic() - begin < hdf5.SILENCE_LIMIT_S / 2


def test_a_mask_beyond_the_memory_is_not_read_for_the_header(workflow_folder: Path) -> None:
    hostile_hdf5.mask_of_931_gib(workflow_folder)
    with pytest.raises(InputError, match=r'declares arrays of 931\.3 GiB'):
        read_diffraction_header(workflow_folder / 'diffraction.h5')


def test_every_layout_and_type_comes_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(40, 30, 20)) * 100
    arrays: dict[str, npt.NDArray[Any]] = {
        'contiguous': values.astype('>f4'),
        'compressed': values.astype('u2'),
        'complex': values + 1j,
        'mask': values > 0,
        'none': np.zeros((0, 5), np.int64),
        'scalar': np.array(3.5, np.float32),
    }
    with h5py.File(tmp_path / 'file.h5', 'w', userblock_size=512) as file:
        for name, array in arrays.items():
            options = {'compression': 'gzip', 'shuffle': True, 'chunks': (7, 11, 20)} if name == 'compressed' else {}
            file.create_dataset(name, data=array, **options)
        file['compact'] = file['scalar']  # a second hard link
        file.attrs.update(text='µm', number=np.float32(0.1), flag=np.True_, one=np.array([7]))
        file['mask'].attrs['text'] = np.bytes_(b'of the mask')
    content = read_hdf5(
        tmp_path / 'file.h5', ['text', 'number', 'flag', 'one', 'absent'], [*arrays, 'compact', 'absent']
    )
    assert content.attributes == {
        'text': 'µm',
        'number': float(np.float32(0.1)),
        'flag': True,
        'one': 7,
        'absent': None,
    }
    assert content.arrays['mask'].attributes['text'] == 'of the mask'
    assert content.arrays.keys() == {*arrays, 'compact'}
    for name, array in arrays.items():
        read = content.arrays[name].get_values()
        assert (read.dtype, read.shape) == (array.dtype, array.shape)
        assert np.array_equal(read, array)


def test_a_filter_of_detectors_is_read(tmp_path: Path) -> None:
    hdf5plugin = pytest.importorskip('hdf5plugin')
    with h5py.File(tmp_path / 'file.h5', 'w') as file:
        file.create_dataset('patterns', data=np.arange(6000).reshape(6, 1000), **hdf5plugin.Bitshuffle())
    values = read_hdf5(tmp_path / 'file.h5', [], ['patterns']).arrays['patterns'].get_values()
    assert np.array_equal(values.ravel(), np.arange(6000))


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that is run in place of the program that reads HDF5."""
    (tmp_path / 'file.h5').touch()
    monkeypatch.setattr(hdf5, '__file__', str(tmp_path / 'hdf5.py'))
    yield tmp_path / 'hdf5_child.py'


ANSWER = """
import sys
print('{"attributes": {}, "arrays": {"x": {"shape": [1000], "dtype": "<f8", "attributes": {}}}}', flush=True)
"""


@pytest.mark.parametrize('before', ['', ANSWER], ids=['at once', 'in the middle'])
@pytest.mark.parametrize(
    ('fault', 'sentence'),
    [
        ('import os; os.kill(os.getpid(), 11)', 'ended with signal 11'),
        ('import sys; sys.exit("no h5py")', 'ended with exit code 1, no h5py'),
        ('import time; time.sleep(1000)', 'no value arrived for 0.5 s'),
    ],
    ids=['crash', 'error', 'silence'],
)
def test_the_end_of_the_reading_process_is_reported(
    before: str, fault: str, sentence: str, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hdf5, 'SILENCE_LIMIT_S', 0.5 if 'sleep' in fault else 60.0)
    program.write_text(before + fault)
    with pytest.raises(InputError, match=sentence) as caught:
        read_hdf5(program.with_name('file.h5'), [], ['x'])
    assert 'file.h5' in str(caught.value)


def test_the_reading_process_does_not_outlive_the_call(program: Path) -> None:
    program.write_text(
        f'import os\nopen({str(program.with_name("pid"))!r}, "w").write(str(os.getpid()))\n'
        + ANSWER.replace('[1000]', f'[{10**15}]')
        + 'import time; time.sleep(1000)'
    )
    with pytest.raises(InputError, match='declares arrays of'):
        read_hdf5(program.with_name('file.h5'), [], ['x'])
    with pytest.raises(ProcessLookupError):
        os.kill(int(program.with_name('pid').read_text()), 0)
