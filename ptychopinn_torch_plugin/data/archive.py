"""Safe reading of NPZ archives: no pickle, and nothing is unpacked before its size is known to be honest."""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError

DEFLATE_LIMIT = 1032
"""Deflate cannot pack more than about 1032 bytes into one (RFC 1951: 258 bytes in 2 bits)."""

_DAMAGE = (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, KeyError, RuntimeError, NotImplementedError)


@dataclass(frozen=True)
class ArrayHeader:
    """What an archive declares about one of its arrays."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    nbytes: int


def read_headers(path: Path) -> dict[str, ArrayHeader]:
    """Read the headers of all arrays in the archive at ``path``, and none of their data.

    Raises:
        InputError: the file is missing, is no NPZ archive or is damaged; an array is a pickled object; or the sizes
            that the archive declares do not fit each other (a damaged file, or a zip bomb).
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f'{path} does not exist.')
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                info.filename.removesuffix('.npy'): _header_of(archive, info, path)
                for info in archive.infolist()
                if info.filename.endswith('.npy')
            }
    except InputError:
        raise
    except _DAMAGE as error:
        raise InputError(f'{path} cannot be read as an NPZ archive ({error}): export it again.') from error


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """Read the arrays called ``names``, after :func:`read_headers` has approved the archive.

    Raises:
        InputError: the arrays together exceed the memory of this machine, or their data are damaged.
    """
    headers = read_headers(path)
    total = sum(headers[name].nbytes for name in names)
    if total > physical_memory():
        raise InputError(
            f'{path} unpacks to {total / 2**30:.1f} GiB, more than the {physical_memory() / 2**30:.1f} GiB of memory '
            'of this machine: crop or bin the patterns, or export fewer.'
        )
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in names}
    except _DAMAGE as error:
        raise InputError(f'{path} is damaged ({error}): export it again.') from error


def physical_memory() -> int:
    """Bytes of main memory of this machine; 64 GiB where the system does not say."""
    if hasattr(os, 'sysconf') and 'SC_PHYS_PAGES' in os.sysconf_names:
        return int(os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'))
    return 2**36


def _header_of(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> ArrayHeader:
    """Read one member's header and compare the three sizes: packed, unpacked, and shape times item size."""
    name = info.filename.removesuffix('.npy')
    with archive.open(info) as stream:
        shape, dtype = _read_npy_header(stream)
        offset = stream.tell()
    if dtype.hasobject:
        raise InputError(
            f'{path} holds {name} as a pickled object, which is never unpickled: save a plain array instead.'
        )
    nbytes = math.prod(shape) * dtype.itemsize
    if offset + nbytes != info.file_size:
        raise InputError(
            f'{path} declares {info.file_size} bytes for {name} but its shape {shape} and dtype {dtype} need '
            f'{offset + nbytes}: the file is damaged; export it again.'
        )
    if info.file_size > DEFLATE_LIMIT * (info.compress_size + 64):
        raise InputError(
            f'{path} declares {info.file_size} bytes for {name} in {info.compress_size} packed ones, more than '
            'compression can reach: the file is damaged; export it again.'
        )
    return ArrayHeader(shape, dtype, nbytes)


def _read_npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of an NPY stream, format 1.0 or 2.0; 3.0 is for field names only, which no array here has."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise ValueError(f'array format {version[0]}.{version[1]}')
    return shape, dtype
