"""Hostile HDF5 files, made from a good workflow folder.

Every function changes ``diffraction.h5`` in the folder it is given. What the new file asks for lies outside of it, does
not exist, or never ends.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import h5py
import numpy as np

SHAPE = (6, 32, 32)


@contextmanager
def _replaced(folder: Path, name: str) -> Iterator[tuple[h5py.File, dict[str, object]]]:
    """Open ``diffraction.h5`` without the data set ``name``; yields the file and the attributes of the data set."""
    with h5py.File(folder / 'diffraction.h5', 'a') as file:
        attributes = dict(file[name].attrs)
        del file[name]
        yield file, attributes


def external_link_to_a_fifo(folder: Path) -> None:
    """The patterns are a link to another file, which is a FIFO: opening it waits for a writer."""
    os.mkfifo(folder / 'pipe.h5')
    with _replaced(folder, 'patterns') as (file, _):
        file['patterns'] = h5py.ExternalLink('pipe.h5', 'patterns')


def external_link_to_a_file(folder: Path) -> None:
    """The patterns are a link to another file with an array above any limit."""
    with h5py.File(folder / 'other.h5', 'w') as other:
        other.create_dataset('patterns', shape=(10**6, 10**4, 10**4), dtype='u2', chunks=(1, 100, 100))
    with _replaced(folder, 'patterns') as (file, _):
        file['patterns'] = h5py.ExternalLink('other.h5', 'patterns')


def soft_link(folder: Path) -> None:
    """The mask is a soft link to itself."""
    with _replaced(folder, 'bad_pixels') as (file, _):
        file['bad_pixels'] = h5py.SoftLink('/bad_pixels')


def soft_link_to_an_external_link(folder: Path) -> None:
    """The patterns are a soft link into a group that is a link to another file."""
    with h5py.File(folder / 'other.h5', 'w') as other:
        other['patterns'] = np.ones(SHAPE, np.uint16)
    with _replaced(folder, 'patterns') as (file, _):
        file['other'] = h5py.ExternalLink('other.h5', '/')
        file['patterns'] = h5py.SoftLink('/other/patterns')


def storage_in_a_fifo(folder: Path) -> None:
    """The values of the patterns lie in a FIFO."""
    os.mkfifo(folder / 'pipe.raw')
    with _replaced(folder, 'patterns') as (file, attributes):
        external = [(str(folder / 'pipe.raw'), 0, h5py.h5f.UNLIMITED)]
        file.create_dataset('patterns', SHAPE, np.uint16, external=external).attrs.update(attributes)


def storage_in_another_file(folder: Path) -> None:
    """The values of the patterns are the bytes of somebody else's file."""
    (folder / 'private').write_bytes(b'secret' * 3000)
    with _replaced(folder, 'patterns') as (file, attributes):
        external = [(str(folder / 'private'), 0, h5py.h5f.UNLIMITED)]
        file.create_dataset('patterns', SHAPE, np.uint16, external=external).attrs.update(attributes)


def _virtual(folder: Path, source: str, name: str) -> None:
    layout = h5py.VirtualLayout(SHAPE, np.uint16)
    layout[:] = h5py.VirtualSource(source, name, SHAPE)
    with _replaced(folder, 'patterns') as (file, attributes):
        file.create_virtual_dataset('patterns', layout).attrs.update(attributes)


def virtual_on_itself(folder: Path) -> None:
    """The patterns are a virtual data set that is its own source."""
    _virtual(folder, '.', 'patterns')


def virtual_on_missing_sources(folder: Path) -> None:
    """The patterns are a virtual data set whose source is not there: HDF5 gives zeros."""
    _virtual(folder, 'absent.h5', 'patterns')


def never_written(folder: Path) -> None:
    """The patterns are declared, and no value of them was written: HDF5 gives zeros."""
    with _replaced(folder, 'patterns') as (file, attributes):
        file.create_dataset('patterns', SHAPE, np.uint16, chunks=(1, 32, 32)).attrs.update(attributes)


def partly_written(folder: Path) -> None:
    """Two of six patterns were written."""
    with _replaced(folder, 'patterns') as (file, attributes):
        patterns = file.create_dataset('patterns', SHAPE, np.uint16, chunks=(1, 32, 32))
        patterns.attrs.update(attributes)
        patterns[:2] = 7


def mask_of_931_gib(folder: Path) -> None:
    """The mask declares 931 GiB."""
    with _replaced(folder, 'bad_pixels') as (file, _):
        file.create_dataset('bad_pixels', (10**6, 10**6), np.bool_, chunks=(100, 100))


def bomb(folder: Path) -> None:
    """Patterns of 200 MB in 200 kB: zeros, compressed."""
    shape = (6, 4096, 4096)
    with _replaced(folder, 'patterns') as (file, attributes):
        patterns = file.create_dataset('patterns', shape, np.uint16, chunks=(1, *shape[1:]), compression='gzip')
        patterns.attrs.update(attributes)
        for number in range(shape[0]):
            patterns.id.write_direct_chunk((number, 0, 0), _packed_zeros(2 * shape[1] * shape[2]))


@cache
def _packed_zeros(size: int) -> bytes:
    return zlib.compress(bytes(size), 9)


def text_in_place_of_numbers(folder: Path) -> None:
    """The indexes are strings of any length."""
    with _replaced(folder, 'indexes') as (file, _):
        file['indexes'] = ['a'] * 6


def attribute_of_64_kib(folder: Path) -> None:
    """The pixel height is an array of 8,000 numbers."""
    with h5py.File(folder / 'diffraction.h5', 'a') as file:
        file['patterns'].attrs['detector_pixel_height_m'] = np.ones(8000)


CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    'an external link to a FIFO': (external_link_to_a_fifo, 'link'),
    'an external link to a file': (external_link_to_a_file, 'link'),
    'a soft link on itself': (soft_link, 'link'),
    'a soft link through an external link': (soft_link_to_an_external_link, 'link'),
    'external storage in a FIFO': (storage_in_a_fifo, 'other files'),
    'external storage in another file': (storage_in_another_file, 'other files'),
    'a virtual data set on itself': (virtual_on_itself, 'virtual'),
    'a virtual data set on missing sources': (virtual_on_missing_sources, 'virtual'),
    'patterns that were never written': (never_written, 'never written'),
    'patterns that were written in part': (partly_written, 'never written'),
    'a mask of 931 GiB': (mask_of_931_gib, 'GiB'),
    'a bomb of 200 MB in 200 kB': (bomb, 'times its size'),
    'text in place of numbers': (text_in_place_of_numbers, 'numbers'),
    'an attribute that is an array': (attribute_of_64_kib, 'single value'),
}
"""What is done to ``diffraction.h5``, and a word of the refusal."""
