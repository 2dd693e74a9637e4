"""The program that reads an HDF5 file in a process of its own; :mod:`.hdf5` starts it.

The HDF5 library crashes or hangs on some damaged files: then this process ends, and not the one that shows the window.

The request is one JSON text on the command line, ``{"path", "attributes", "arrays", "with_data", "offsets"}``. The
answer on standard output is one line of JSON that lists attributes and arrays, then the values of the arrays in this
order, row-major, in the byte order of the listed dtypes. The reason why a file is not read is one line of JSON on
standard error, with exit code :data:`REFUSED` or :data:`UNREADABLE`.

Only what lies in the file itself is read: no link is followed, and arrays whose values lie in other files, or were
never written, are refused before a value is read. This file is run by its path, so it imports nothing of the package.
"""

from __future__ import annotations

import json
import math
import sys
from typing import Any, BinaryIO

import h5py
import numpy as np

REFUSED = 3
"""Exit code where the file holds what is not read."""
UNREADABLE = 4
"""Exit code where the HDF5 library cannot read the file."""
BLOCK_BYTES = 2**24
"""Values that are read and handed on at a time."""
MAX_ATTRIBUTE_BYTES = 2**16
MAX_REASON_CHARS = 300

_BUILT_IN_FILTERS = frozenset({1, 2, 3, 4, 5, 6, 32000})
"""Filters that come with HDF5, and LZF, which comes with h5py."""


class RefusedError(Exception):
    """The file holds what is not read."""


def attribute(item: Any, name: str, where: str) -> float | str | None:  # noqa: ANN401 - h5py has no types
    """Return the attribute ``name`` of a group or data set; None where there is none."""
    if name not in item.attrs:
        return None
    if item.attrs.get_id(name).get_storage_size() > MAX_ATTRIBUTE_BYTES:
        raise RefusedError(f'{where} has an attribute {name} that is not a single value')
    value: Any = item.attrs[name]
    if isinstance(value, np.ndarray | np.generic) and value.size == 1:
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode('utf-8', 'surrogateescape')
    if not isinstance(value, bool | int | float | str):
        raise RefusedError(f'{where} has an attribute {name} that is not a single value')
    return value


def open_array(root: Any, name: str) -> Any:  # noqa: ANN401 - h5py has no types
    """Open the data set ``name`` in the group ``root``, without following links or reading a value."""
    link = root.id.links.get_info(name.encode()).type
    if link != h5py.h5l.TYPE_HARD:
        raise RefusedError(f'{name} is a link to another place or file, which is not followed')
    opened = h5py.h5o.open(root.id, name.encode())
    if not isinstance(opened, h5py.h5d.DatasetID):
        raise RefusedError(f'{name} is no data set')
    layout = opened.get_create_plist()
    if layout.get_layout() == h5py.h5d.VIRTUAL:
        raise RefusedError(f'{name} is a virtual data set, whose values lie in other data sets or files')
    if layout.get_external_count():
        raise RefusedError(f'{name} has its values in other files')
    array = h5py.Dataset(opened)
    if array.shape is None or array.dtype.kind not in 'biufc':
        raise RefusedError(f'{name} holds no numbers')
    if any(layout.get_filter(number)[0] not in _BUILT_IN_FILTERS for number in range(layout.get_nfilters())):
        # Filters of detectors, as Ptychodus has them.
        import hdf5plugin  # noqa: F401
    return array


def check_written(array: Any, name: str) -> None:  # noqa: ANN401 - h5py has no types
    """Refuse an array that was not written in whole: HDF5 gives its fill value for the rest."""
    if array.size and not array.id.get_storage_size():
        raise RefusedError(f'the values of {name} were never written')
    if array.chunks is not None and array.size:
        needed = math.prod(-(-side // chunk) for side, chunk in zip(array.shape, array.chunks, strict=True))
        written = array.id.get_num_chunks()
        if written < needed:
            raise RefusedError(f'{needed - written} of {needed} blocks of {name} were never written')


def offset_of(array: Any, name: str, path: str) -> int | None:  # noqa: ANN401 - h5py has no types
    """Return the byte of the file at which the values begin; None where they do not lie there one after the other."""
    offset = array.id.get_offset()
    if array.chunks is not None or offset is None or not array.size or not array.shape:
        return None
    check_written(array, name)
    size = array.dtype.itemsize * math.prod(array.shape[1:])
    with open(path, 'rb') as file:  # noqa: PTH123 - a path as it was requested
        for number in (0, len(array) - 1):
            file.seek(offset + number * size)
            if file.read(size) != np.ascontiguousarray(array[number]).tobytes():
                return None
    return int(offset)


def write_values(array: Any, stream: BinaryIO) -> None:  # noqa: ANN401 - h5py has no types
    """Write all values of the data set ``array`` to ``stream``, a block of whole chunks at a time."""
    if not array.shape:
        stream.write(np.ascontiguousarray(array[()]).tobytes())
        return
    rows = array.chunks[0] if array.chunks else 1
    row_bytes = max(1, math.prod(array.shape[1:]) * array.dtype.itemsize)
    step = rows * max(1, BLOCK_BYTES // (rows * row_bytes))
    for start in range(0, array.shape[0], step):
        stream.write(np.ascontiguousarray(array[start : start + step]).tobytes())


def answer(request: dict[str, Any], stream: BinaryIO) -> None:
    """Answer ``request`` on ``stream``."""
    with h5py.File(request['path'], 'r') as file:
        found = {name: open_array(file, name) for name in request['arrays'] if file.id.links.exists(name.encode())}
        listing = {
            'attributes': {name: attribute(file, name, 'the file') for name in request['attributes']},
            'arrays': {
                name: {
                    'shape': array.shape,
                    'dtype': array.dtype.str,
                    'attributes': {key: attribute(array, key, name) for key in request['attributes']},
                    'offset': offset_of(array, name, request['path']) if name in request['offsets'] else None,
                }
                for name, array in found.items()
            },
        }
        # The shapes first, so that the reader can refuse an array that is too large.
        stream.write(json.dumps(listing).encode() + b'\n')
        stream.flush()
        with_data = {name: array for name, array in found.items() if name in request['with_data']}
        for name, array in with_data.items():
            check_written(array, name)
        for array in with_data.values():
            write_values(array, stream)
    stream.flush()


def run(request: dict[str, Any], stream: BinaryIO) -> int:
    """Answer ``request`` on ``stream``, or write to standard error why not; return the exit code."""
    try:
        answer(request, stream)
    except Exception as failure:
        # h5py raises errors of many classes for damaged files.
        reason = ' '.join(str(failure).split())[:MAX_REASON_CHARS] or type(failure).__name__
        sys.stderr.write(json.dumps(reason) + '\n')
        return REFUSED if isinstance(failure, RefusedError) else UNREADABLE
    return 0


if __name__ == '__main__':
    sys.exit(run(json.loads(sys.argv[1]), sys.stdout.buffer))
