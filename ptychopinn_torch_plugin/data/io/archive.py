"""Safe reading of NPZ archives: no pickle, and nothing is unpacked before its size is known to be honest."""

from __future__ import annotations

import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ...errors import InputError
from ...limits import physical_memory

DEFLATE_LIMIT = 1032
"""Deflate cannot pack more than about 1032 bytes into one (RFC 1951: 258 bytes in 2 bits)."""

MAX_MEMBERS = 1000
"""Members of an archive; a training file has about a dozen."""
MAX_GROWTH = 250
"""Times that arrays may grow together when they are unpacked, if they come to more than ``HARMLESS_BYTES``."""
HARMLESS_BYTES = 2**26
MAX_SHOWN = 60
MAX_REASON = 200

_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    OverflowError,
    SyntaxError,
    RuntimeError,
    tokenize.TokenError,
)
"""What zipfile and NumPy raise for files that are damaged, or made to look so."""


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
            members = archive.infolist()
            _refuse_many_or_repeated([info.filename for info in members], path)
            return {
                info.filename.removesuffix('.npy'): _header_of(archive, info, path)
                for info in members
                if info.filename.endswith('.npy')
            }
    except InputError:
        raise
    except _DAMAGE as error:
        raise InputError(f'{path} cannot be read as an NPZ archive ({_reason(error)}): export it again.') from error


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """Read the arrays called ``names``, after :func:`read_headers` has approved the archive.

    Returns:
        Arrays by name, with shape ``(...)`` and dtype as stored.

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
    packed = path.stat().st_size
    if total > HARMLESS_BYTES + MAX_GROWTH * packed:
        raise InputError(
            f'{path} unpacks from {packed} to {total} bytes, more than {MAX_GROWTH} times its size, as files do that '
            'are made to fill the memory: if it is yours, save it without compression (numpy.savez).'
        )
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in names}
    except _DAMAGE as error:
        raise InputError(f'{path} is damaged ({_reason(error)}): export it again.') from error


def _reason(error: Exception) -> str:
    """The words of an error of another package, short: they may quote the file."""
    text = ' '.join(str(error).split())
    return text if len(text) <= MAX_REASON else text[:MAX_REASON] + '...'


def _refuse_many_or_repeated(names: Sequence[str], path: Path) -> None:
    """Raise for more members than any training file has, or for a name that stands for two of them."""
    if len(names) > MAX_MEMBERS:
        raise InputError(f'{path} holds {len(names)} arrays, more than {MAX_MEMBERS}: this is no training file.')
    repeated = sorted(name for name, number in Counter(names).items() if number > 1)
    if repeated:
        raise InputError(f'{path} holds {_shown(repeated[0])} twice: the file is damaged; export it again.')


def _shown(name: str) -> str:
    """``name`` as a message may show it: printable and short."""
    printable = name.encode('unicode_escape').decode('ascii')
    return printable if len(printable) <= MAX_SHOWN else printable[:MAX_SHOWN] + '...'


def _header_of(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> ArrayHeader:
    """Read one member's header and compare the three sizes: packed, unpacked, and shape times item size."""
    name = _shown(info.filename.removesuffix('.npy'))
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
