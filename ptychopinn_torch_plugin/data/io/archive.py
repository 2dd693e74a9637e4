"""Read NPZ archives that anybody may have written: no pickle, and sizes are checked before anything is unpacked."""

from __future__ import annotations

import io
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
from ...storage.checked_files import check_declared_bytes, open_regular, printable

DEFLATE_LIMIT = 1032
"""Largest compression factor of deflate (RFC 1951: 258 bytes in 2 bits)."""

MAX_MEMBERS = 1000
"""Members of an archive; a training file has about a dozen."""
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
"""Errors that zipfile and NumPy raise for damaged files."""


@dataclass(frozen=True)
class ArrayHeader:
    """Shape, dtype and size that an archive declares for one of its arrays."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    nbytes: int


def read_headers(path: Path) -> dict[str, ArrayHeader]:
    """Read the headers of all arrays in the archive at ``path``, but not their data.

    Raises:
        InputError: the file is missing, is no NPZ archive or is damaged; an array is a pickled object; or the sizes
            that the archive declares do not fit each other (a damaged file, or a zip bomb).
    """
    with open_regular(Path(path)) as file:
        return _headers_of(file, path)


def holds_array(path: Path, name: str) -> bool:
    """Return whether the archive at ``path`` has an array called ``name``, from its table of contents alone.

    Raises:
        InputError: the file is missing, no regular file, or no NPZ archive.
    """
    with open_regular(Path(path)) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                return f'{name}.npy' in archive.namelist()
        except _DAMAGE as error:
            raise InputError(f'{path} cannot be read as an NPZ archive ({_reason(error)}): export it again.') from error


def _headers_of(file: IO[bytes], path: Path) -> dict[str, ArrayHeader]:
    try:
        with zipfile.ZipFile(file) as archive:
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
    """Read the arrays called ``names``, with all checks of :func:`read_headers`.

    Returns:
        Arrays by name, with shape ``(...)`` and dtype as stored.

    Raises:
        InputError: the arrays together exceed the memory of this machine, or their data are damaged.
    """
    with open_regular(Path(path)) as file:
        headers = _headers_of(file, path)
        check_declared_bytes(path, sum(headers[name].nbytes for name in names), file.seek(0, io.SEEK_END))
        file.seek(0)
        try:
            with np.load(file, allow_pickle=False) as archive:
                return {name: archive[name] for name in names}
        except MemoryError as error:
            raise InputError(
                f'{path} needs more memory than the system gives ({_reason(error)}): crop or bin the patterns.'
            ) from error
        except _DAMAGE as error:
            raise InputError(f'{path} is damaged ({_reason(error)}): export it again.') from error


def _reason(error: Exception) -> str:
    """Return the message of an error of another package, short: it may quote the file."""
    return printable(' '.join(str(error).split()), MAX_REASON)


def _refuse_many_or_repeated(names: Sequence[str], path: Path) -> None:
    """Raise for more members than any training file has, or for two members of one name."""
    if len(names) > MAX_MEMBERS:
        raise InputError(f'{path} holds {len(names)} arrays, more than {MAX_MEMBERS}: this is no training file.')
    repeated = sorted(name for name, number in Counter(names).items() if number > 1)
    if repeated:
        raise InputError(f'{path} holds {printable(repeated[0])} twice: the file is damaged; export it again.')


def _header_of(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> ArrayHeader:
    """Read the header of a member and compare three sizes: packed, unpacked, and number of values times item size."""
    name = printable(info.filename.removesuffix('.npy'))
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
    """Return shape and dtype of an NPY stream of format 1.0 or 2.0; 3.0 is needed for field names only."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise ValueError(f'array format {version[0]}.{version[1]}')
    return shape, dtype
