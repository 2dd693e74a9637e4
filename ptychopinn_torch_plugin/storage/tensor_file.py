"""Reading safetensors files with suspicion: a file is data, and what it asks for is checked before memory is taken.

The safetensors library checks the structure: the JSON table in front, and that the tensors fill the rest of the file
without gap or overlap. What is added here bounds the table before it is parsed, and refuses what two readers could
understand in two ways (a key given twice). Neither torch nor numpy data are touched.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..errors import ModelFileError

LENGTH_BYTES = 8
"""The file begins with the length of its table, unsigned, little-endian."""
MAX_TABLE_BYTES = 16 * 2**20
"""Of the table: room for the losses of 100,000 epochs."""
MAX_REST_BYTES = 2**20
"""Of the table without the text of our own header."""
MAX_TENSORS = 4096
MAX_VALUES = 500_000
"""Values in the text of our own header; four for an epoch."""
_SHOWN_CHARS = 60


@contextmanager
def open_tensor_file(path: Path, key: str) -> Iterator[tuple[Any, str]]:
    """Open a safetensors file and yield it, with the text that its metadata hold under ``key``.

    Args:
        path: the file; it must exist.
        key: name of the metadata entry that tells whose file it is.

    Yields:
        The open file (``safe_open`` of safetensors, numpy) and the text.

    Raises:
        ModelFileError: the file is no whole safetensors file, has no such entry, or its table is larger than any model
            needs or holds a key twice.
    """
    try:
        table = _read_table(path)
        file: Any = safe_open(path, framework='numpy')  # it has no types
    except (SafetensorError, OSError) as error:
        raise ModelFileError(
            f'{path.name} is not a readable safetensors file ({shown(str(error), 200)}); choose a model file.'
        ) from error
    with file:
        text = (file.metadata() or {}).get(key)
        if text is None:
            raise ModelFileError(
                f'{path.name} is a safetensors file, but not a model of this package: it has no "{key}" header.'
            )
        if len(table) - len(json.dumps(text, ensure_ascii=False).encode()) > MAX_REST_BYTES:
            raise ModelFileError(
                f'The table of {path.name} holds more than {MAX_REST_BYTES} bytes beside the "{key}" header: the file '
                'is damaged.'
            )
        _parse(table, path)
        yield file, text


def parse_header(text: str, path: Path) -> Any:  # noqa: ANN401 - any JSON value
    """Parse the text of our own header.

    Raises:
        ModelFileError: it is no JSON, too deep, holds a key twice, or more values than any model needs.
    """
    if text.count(',') + text.count('[') + text.count('{') > MAX_VALUES:
        raise ModelFileError(f'The header of {path.name} holds more than {MAX_VALUES} values: the file is damaged.')
    return _parse(text.encode(), path)


def shown(text: str, length: int = _SHOWN_CHARS) -> str:
    """``text`` as a message may show it: printable and short."""
    printable = text.encode('unicode_escape').decode('ascii')
    return printable if len(printable) <= length else printable[:length] + '...'


def _read_table(path: Path) -> bytes:
    """The JSON table, as bytes, after its length was found to be reasonable; empty if the file is no such file."""
    size = path.stat().st_size
    with path.open('rb') as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), 'little')
        if length > min(size - LENGTH_BYTES, MAX_TABLE_BYTES):
            raise ModelFileError(
                f'{path.name} is not a readable safetensors file: it begins with a table of {length} bytes, but has '
                f'{size} bytes in all, and no model needs a table above {MAX_TABLE_BYTES}; choose a model file.'
            )
        table = file.read(length)
    if table.count(b'"data_offsets"') > MAX_TENSORS:
        raise ModelFileError(f'{path.name} declares more than {MAX_TENSORS} tensors: the file is damaged.')
    return table


def _parse(text: bytes, path: Path) -> Any:  # noqa: ANN401 - any JSON value
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except _RepeatedKeyError as error:
        raise ModelFileError(f'{path.name} gives "{shown(str(error))}" twice: the file is damaged.') from error
    except (RecursionError, ValueError) as error:
        raise ModelFileError(
            f'The header of {path.name} is no JSON that can be read ({shown(str(error), 200)}): the file is damaged.'
        ) from error


class _RepeatedKeyError(Exception):
    """A JSON object holds a key twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of ``pairs``, whose keys must differ."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _RepeatedKeyError(key)
        found[key] = value
    return found
