"""Read attributes and arrays of an HDF5 file that anybody may have written.

The HDF5 library follows links to other files, waits at FIFOs, and crashes on some damaged files. Therefore a process of
its own reads the file (:mod:`.hdf5_child`), refuses whatever lies outside of it, and sends the plain values through a
pipe. To start it takes about 0.1 s; it decompresses patterns while this process receives them.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from ...errors import InputError
from ...storage.checked_files import check_declared_bytes, open_regular, printable

SILENCE_LIMIT_S = 60.0
"""Time without a value from the reading process after which it is ended, in seconds. A disk needs less for 16 MiB."""
_BLOCK_BYTES = 2**24
_MAX_ANSWER_BYTES = 2**22
_REFUSED, _UNREADABLE = 3, 4
"""Exit codes of the reading process."""

Attributes = dict[str, float | str | None]


@dataclass(frozen=True, eq=False)
class Hdf5Array:
    """A data set of numbers."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    attributes: Attributes
    values: npt.NDArray[Any] | None
    """The values; None where they were not asked for."""
    offset: int | None = None
    """Byte of the file at which the values begin, row-major and not compressed; None where they are stored otherwise,
    or the offset was not asked for."""

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * self.dtype.itemsize

    def get_values(self) -> npt.NDArray[Any]:
        """Return the values of an array that was read whole."""
        if self.values is None:
            raise ValueError('only the shape of this array was read')
        return self.values

    def get_number(self, name: str) -> float:
        """Return an attribute as a number.

        Raises:
            KeyError: there is none of this name.
            ValueError: it is no number.
        """
        value = self.attributes.get(name)
        if value is None:
            raise KeyError(name)
        return float(value)


@dataclass(frozen=True, eq=False)
class Hdf5Content:
    """What was asked for, as far as it is in the file."""

    attributes: Attributes
    """Attributes of the file; None where there is none of that name."""
    arrays: dict[str, Hdf5Array]


def read_hdf5(
    path: Path,
    attributes: Collection[str],
    arrays: Collection[str],
    *,
    shapes_only: Collection[str] = (),
    offsets: Collection[str] = (),
) -> Hdf5Content:
    """Read attributes and arrays that lie in the root group of an HDF5 file.

    Args:
        path: the file.
        attributes: names of attributes of the file and of its arrays.
        arrays: names of arrays.
        shapes_only: arrays whose values are not read.
        offsets: arrays whose place in the file is returned.

    Raises:
        InputError: the file is missing, no regular file, no HDF5 or damaged; an array is a link, lies in other files,
            is virtual, was not written completely, holds no numbers, or is too large.
    """
    with open_regular(path) as file:
        packed = file.seek(0, 2)
    request = {
        'path': str(Path(path).absolute()),
        'attributes': list(attributes),
        'arrays': list(arrays),
        'with_data': sorted(set(arrays) - set(shapes_only)),
        'offsets': list(offsets),
    }
    with _reading_process(path, request) as process:
        return _receive(process, path, packed, request['with_data'])


def copy_hdf5_array(path: Path, name: str, stream: BinaryIO) -> None:
    """Write the values of the array ``name`` of an HDF5 file to ``stream``, row-major, a block at a time.

    Raises:
        InputError: as :func:`read_hdf5`; only the size is not limited.
    """
    request = {
        'path': str(Path(path).absolute()),
        'attributes': [],
        'arrays': [name],
        'with_data': [name],
        'offsets': [],
    }
    with open_regular(path), _reading_process(path, request) as process:
        (listed,) = json.loads(process.line())['arrays'].values()
        process.copy(math.prod(listed['shape']) * np.dtype(listed['dtype']).itemsize, stream)


def _receive(process: _ReadingProcess, path: Path, packed: int, with_data: Collection[str]) -> Hdf5Content:
    answer = json.loads(process.line())
    sizes: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
        name: (tuple(one['shape']), np.dtype(one['dtype'])) for name, one in answer['arrays'].items()
    }
    needed = sum(math.prod(shape) * dtype.itemsize for name, (shape, dtype) in sizes.items() if name in with_data)
    check_declared_bytes(path, needed, packed)
    return Hdf5Content(
        answer['attributes'],
        {
            name: Hdf5Array(
                shape,
                dtype,
                answer['arrays'][name]['attributes'],
                process.array(shape, dtype) if name in with_data else None,
                answer['arrays'][name]['offset'],
            )
            for name, (shape, dtype) in sizes.items()
        },
    )


class _ReadingProcess:
    """The process that reads, and what arrives from it."""

    def __init__(self, process: subprocess.Popen[bytes], path: Path) -> None:
        self._process = process
        self._path = path
        self._was_silent = threading.Event()

    def line(self) -> bytes:
        """Return the first line of the answer."""
        with self._time_limit():
            line = self._stream.readline(_MAX_ANSWER_BYTES)
        if not line.endswith(b'\n'):
            raise self._failure()
        return line

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Return the next array of the answer."""
        try:
            values: npt.NDArray[Any] = np.empty(shape, dtype)
        except MemoryError as error:
            raise InputError(
                f'{self._path} holds an array of shape {shape} and dtype {dtype}, and the system does not give the '
                'memory for it: crop or bin the patterns, or raise the memory limit.'
            ) from error
        view = values.reshape(-1).view(np.uint8).data
        for start in range(0, len(view), _BLOCK_BYTES):
            self._fill(view[start : start + _BLOCK_BYTES])
        return values

    def copy(self, size: int, stream: BinaryIO) -> None:
        """Write the next ``size`` bytes of the answer to ``stream``."""
        view = memoryview(bytearray(min(size, _BLOCK_BYTES)))
        for start in range(0, size, _BLOCK_BYTES):
            block = view[: size - start]
            self._fill(block)
            stream.write(block)

    def _fill(self, block: memoryview) -> None:
        with self._time_limit():
            read = self._stream.readinto(block)  # type: ignore[attr-defined] # a buffered reader
        if read < len(block):
            raise self._failure()

    @property
    def _stream(self) -> IO[bytes]:
        return cast(IO[bytes], self._process.stdout)

    @contextmanager
    def _time_limit(self) -> Iterator[None]:
        """End the process if nothing arrives for ``SILENCE_LIMIT_S``."""

        def end() -> None:
            self._was_silent.set()
            self._process.kill()

        timer = threading.Timer(SILENCE_LIMIT_S, end)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _failure(self) -> InputError:
        """Return the error for an answer that is not complete: the process has ended, or closed its output."""
        _, said = self._process.communicate()
        if self._was_silent.is_set():
            return InputError(
                f'{self._path} could not be read: no value arrived for {SILENCE_LIMIT_S:g} s; check the disk, or copy '
                'the file to another one.'
            )
        code, lines = self._process.returncode, said.decode(errors='replace').splitlines()
        if code == _REFUSED and lines:
            return InputError(
                f'{self._path} is not read, because {json.loads(lines[-1])}: save it again with all values in this '
                'file.'
            )
        if code == _UNREADABLE and lines:
            return InputError(f'{self._path} cannot be read as HDF5 ({json.loads(lines[-1])}): save or copy it again.')
        how = f'signal {-code}' if code < 0 else f'exit code {code}'
        last = printable(lines[-1], 200) if lines else 'no message'
        return InputError(
            f'{self._path} cannot be read as HDF5 (the process that read it ended with {how}, {last}): the file is '
            'damaged; save or copy it again.'
        )


@contextmanager
def _reading_process(path: Path, request: dict[str, Any]) -> Iterator[_ReadingProcess]:
    """Start the process that reads, and end it at the exit, whatever happens."""
    program = Path(__file__).with_name('hdf5_child.py')
    process = subprocess.Popen(  # noqa: S603 - our own program; the path of the file is data in its request
        [sys.executable, '-P', str(program), json.dumps(request)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        try:
            yield _ReadingProcess(process, path)
        finally:
            process.kill()
