"""Patterns that stay in their file and are read in blocks, for scans that are larger than the memory.

Threads read the next block while the present one is used, so patterns that are used in their order are hardly waited
for. The blocks in memory have a bounded size, whatever the size of the scan.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from ..errors import InputError

BLOCK_BYTES = 2**22
"""Size of the blocks that are read."""
READING_THREADS = 2
SPARSE = 4
"""Patterns that lie on average more than so many patterns apart are read one by one, others in blocks."""

Indices = npt.NDArray[np.int64]


class PatternFile:
    """Patterns ``(n, H, W)`` in a file, row-major and not compressed; read-only, and indexed like an array of NumPy.

    Slices give views, which read nothing. Indices, and :func:`numpy.asarray` of a view, give arrays. The file is opened
    for every read, so that copies in other processes (pickled by the path) read it on their own.

    Args:
        path: the file.
        dtype: type of a value in the file.
        shape: number, height and width of the patterns in the file.
        offset: first byte of the patterns in the file.

    Raises:
        InputError: a read found the file shorter than ``shape`` needs, or could not open it.
    """

    def __init__(self, path: Path, dtype: npt.DTypeLike, shape: tuple[int, int, int], offset: int = 0) -> None:
        self._file = _BlockReader(Path(path).absolute(), np.dtype(dtype), shape, offset)
        self._frames: Indices = np.arange(shape[0])
        self._window = slice(0, shape[1]), slice(0, shape[2])

    @property
    def source(self) -> object:
        """The reader of the file, which all views share."""
        return self._file

    @property
    def path(self) -> Path:
        """The file."""
        return self._file.path

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a value."""
        return self._file.dtype

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number, height and width of the patterns."""
        rows, columns = (
            len(range(*part.indices(side))) for part, side in zip(self._window, self._file.shape[1:], strict=True)
        )
        return self._frames.size, rows, columns

    @property
    def ndim(self) -> int:
        """Number of axes: three."""
        return 3

    @property
    def nbytes(self) -> int:
        """Bytes of all patterns together."""
        number, height, width = self.shape
        return number * height * width * self.dtype.itemsize

    def __len__(self) -> int:
        return self._frames.size

    def __getitem__(self, key: Any) -> Any:  # noqa: ANN401 - as for an array
        first, *window = key if isinstance(key, tuple) else (key,)
        if len(window) > 2 or not all(isinstance(part, slice) for part in window):
            raise IndexError('patterns in a file are indexed by number; rows and columns by slices')
        if isinstance(first, slice):
            return self._view(self._frames[first], window)
        frames = self._frames[first]
        if frames.ndim == 0:
            return self._view(frames[None], window)._read()[0]
        return self._view(frames, window)._read()

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError('patterns in a file cannot be an array without a copy')
        return np.asarray(self._read(), dtype=dtype)

    def select(self, indices: npt.NDArray[np.integer]) -> PatternFile:
        """Return a view of the patterns ``indices`` ``(m,)``, which reads nothing."""
        return self._view(self._frames[indices], [])

    def _view(self, frames: Indices, window: list[slice]) -> PatternFile:
        view = object.__new__(PatternFile)
        view._file, view._frames = self._file, frames
        rows, columns = (*window, slice(None), slice(None))[:2]
        sides = self._file.shape[1:]
        view._window = (
            _composed(self._window[0], rows, sides[0]),
            _composed(self._window[1], columns, sides[1]),
        )
        return view

    def _read(self) -> npt.NDArray[Any]:
        whole = self.shape[1:] == self._file.shape[1:]
        frames = self._file.read(self._frames)
        return frames if whole else np.ascontiguousarray(frames[:, *self._window])


def subset(counts: npt.NDArray[np.number], indices: npt.NDArray[np.integer]) -> npt.NDArray[np.number]:
    """Return the patterns ``indices`` ``(m,)`` of ``counts``: a view of patterns in a file, a copy of others."""
    stack: object = counts
    return cast('npt.NDArray[np.number]', stack.select(indices)) if isinstance(stack, PatternFile) else counts[indices]


def _composed(outer: slice, inner: slice, side: int) -> slice:
    """Return the slice of an axis of length ``side`` that takes ``inner`` of what ``outer`` takes."""
    taken = range(*outer.indices(side))[inner]
    if taken.step < 1:
        raise IndexError('rows and columns of patterns in a file are taken in ascending order')
    return slice(taken.start, max(taken.stop, taken.start), taken.step)


class _BlockReader:
    """Reads patterns of one file in blocks, and the block after the last one ahead."""

    def __init__(self, path: Path, dtype: np.dtype[Any], shape: tuple[int, int, int], offset: int) -> None:
        self.path, self.dtype, self.shape, self.offset = path, dtype, shape, offset
        self._pattern_bytes = shape[1] * shape[2] * dtype.itemsize
        self._step = max(1, BLOCK_BYTES // self._pattern_bytes)
        # Every computing thread has its place in the scan: one block there, and one ahead.
        self._most = 2 * (os.cpu_count() or 1) + READING_THREADS
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(READING_THREADS, thread_name_prefix='patterns')
        self._blocks: OrderedDict[int, Future[npt.NDArray[Any]]] = OrderedDict()

    def __reduce__(self) -> tuple[type[_BlockReader], tuple[object, ...]]:
        return _BlockReader, (self.path, self.dtype, self.shape, self.offset)

    def read(self, frames: Indices) -> npt.NDArray[Any]:
        """Return the patterns ``frames`` of the file, in any order."""
        result = np.empty((frames.size, *self.shape[1:]), self.dtype)
        if not frames.size:
            return result
        first, last = int(frames.min()), int(frames.max())
        if last - first >= SPARSE * frames.size:
            for place, frame in enumerate(frames.tolist()):
                result[place] = self._read_file(frame, 1)[0]
            return result
        for number in range(first // self._step, last // self._step + 1):
            start = number * self._step
            places = np.flatnonzero((frames >= start) & (frames < start + self._step))
            if places.size:
                result[places] = self._block(number)[frames[places] - start]
        return result

    def _block(self, number: int) -> npt.NDArray[Any]:
        if self._process != os.getpid():  # a forked process has none of the threads
            self._start()
        with self._lock:
            wanted = self._request(number)
            if (number + 1) * self._step < self.shape[0]:
                self._request(number + 1)
            while len(self._blocks) > self._most:
                self._blocks.popitem(last=False)
        return wanted.result()

    def _request(self, number: int) -> Future[npt.NDArray[Any]]:
        """Return the block that is read, or will be, and make it the last one to be forgotten."""
        if number not in self._blocks:
            self._blocks[number] = self._threads.submit(self._read_file, number * self._step, self._step)
        self._blocks.move_to_end(number)
        return self._blocks[number]

    def _read_file(self, first: int, count: int) -> npt.NDArray[Any]:
        count = min(count, self.shape[0] - first)
        needed = count * self.shape[1] * self.shape[2]
        try:
            values: npt.NDArray[Any] = np.fromfile(
                self.path, self.dtype, needed, offset=self.offset + first * self._pattern_bytes
            )
        except OSError as error:
            raise InputError(f'{self.path} cannot be read any more ({error.strerror or error}).') from error
        if values.size < needed:
            raise InputError(
                f'{self.path} ends within pattern {first + values.size // self.shape[1] // self.shape[2]}.'
            )
        return values.reshape(count, *self.shape[1:])
