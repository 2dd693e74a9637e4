"""Open safetensors files that anybody may have written: models and resume states.

The safetensors library checks the structure: the JSON table at the beginning, and that the tensors fill the rest of the
file without gap or overlap. This module limits the table before it is parsed, and refuses a key that is given twice,
which two readers could understand in two ways. No tensor is read here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from ..errors import ModelFileError, PtychoPINNError
from .checked_files import open_regular, parse_json, printable

LENGTH_BYTES = 8
"""The file begins with the length of its table, unsigned, little-endian."""
MAX_TABLE_BYTES = 16 * 2**20
"""Size of the table: room for the losses of 100,000 epochs."""
MAX_REST_BYTES = 2**20
"""Size of the table without the text of our own header."""
MAX_TENSORS = 4096
MAX_HEADER_VALUES = 500_000
"""Values in the text of our own header; four for an epoch."""


@contextmanager
def open_tensor_file(
    path: Path,
    key: str,
    *,
    framework: Literal['numpy', 'pt'] = 'numpy',
    error: type[PtychoPINNError] = ModelFileError,
    follow_links: bool = True,
) -> Iterator[tuple[Any, Any]]:
    """Open a safetensors file and yield it, with the JSON document that its metadata hold under ``key``.

    Args:
        path: the file.
        key: name of the metadata entry that holds the document as text.
        framework: kind of the tensors, numpy arrays or torch tensors.
        error: class of the error that is raised.
        follow_links: accept a symbolic link to a regular file.

    Yields:
        The open file (``safe_open`` of safetensors) and the document: any JSON value, its nesting bounded.

    Raises:
        error: the file is missing, is no regular file or no whole safetensors file, has no such entry, or its table or
            document is larger than any model needs, is nested too deep, or gives a key twice.
    """
    table = _read_table(path, error, follow_links=follow_links)
    try:
        file: Any = safe_open(path, framework=framework)  # it has no types
    except (SafetensorError, OSError) as failure:
        raise error(
            f'{path.name} is not a readable safetensors file ({printable(str(failure), 200)}): choose another file.'
        ) from failure
    with file:
        text = (file.metadata() or {}).get(key)
        if text is None:
            raise error(f'{path.name} is a safetensors file, but not one of this package: it has no "{key}" header.')
        if len(table) - len(json.dumps(text, ensure_ascii=False).encode()) > MAX_REST_BYTES:
            raise error(
                f'The table of {path.name} holds more than {MAX_REST_BYTES:,} bytes beside the "{key}" header: the '
                'file is damaged.'
            )
        # The library takes the last of two equal keys.
        parse_json(table, Path(path.name), error, max_values=None)
        yield file, parse_json(text, Path(path.name), error, max_values=MAX_HEADER_VALUES)


def _read_table(path: Path, error: type[PtychoPINNError], *, follow_links: bool) -> str:
    """Return the JSON table, after its length was found to be reasonable."""
    with open_regular(path, error, follow_links=follow_links) as file:
        size = file.seek(0, 2)
        file.seek(0)
        length = int.from_bytes(file.read(LENGTH_BYTES), 'little')
        if length > min(size - LENGTH_BYTES, MAX_TABLE_BYTES):
            raise error(
                f'{path.name} is not a readable safetensors file: it begins with a table of {length} bytes, but has '
                f'{size} bytes in all, and no model needs a table above {MAX_TABLE_BYTES}: choose another file.'
            )
        table = file.read(length)
    if table.count(b'"data_offsets"') > MAX_TENSORS:
        raise error(f'{path.name} declares more than {MAX_TENSORS} tensors: the file is damaged.')
    try:
        return table.decode()
    except UnicodeDecodeError as failure:
        raise error(f'{path.name} is not a readable safetensors file (no UTF-8): choose another file.') from failure
