"""Patterns of an HDF5 file that are too large for the memory: they stay on the disk."""

from __future__ import annotations

import logging
import shutil
import tempfile
import weakref
from pathlib import Path

from ...errors import InputError
from ...limits import memory_limit
from ...storage.atomic import sweep, temporary_name
from ..chunks import PatternFile
from .hdf5 import Hdf5Array, copy_hdf5_array

logger = logging.getLogger(__name__)

LARGE_SHARE = 0.25
"""Share of the memory above which patterns stay on the disk."""


def is_large(array: Hdf5Array) -> bool:
    """Return whether the values of ``array`` need more than ``LARGE_SHARE`` of the memory that may be used."""
    return array.nbytes > LARGE_SHARE * memory_limit()


def patterns_on_disk(file: Path, name: str, array: Hdf5Array) -> PatternFile:
    """Return the patterns ``name`` of an HDF5 file without reading them into memory.

    Values that are compressed or stored in blocks are copied once into a temporary file (in the folder of the
    environment variable ``TMPDIR``), which is removed with the last use of the patterns.

    Args:
        file: the HDF5 file.
        name: name of the array.
        array: its shape, type and place in the file, as read from it.

    Raises:
        InputError: there is no room for the copy, or the file cannot be read.
        ValueError: the array has not three axes.
    """
    number, height, width = array.shape
    shape = number, height, width
    size = array.nbytes / 2**30
    if array.offset is not None:
        logger.info('%s holds %.3g GiB of patterns: they are read from it block by block.', file, size)
        return PatternFile(file, array.dtype, shape, array.offset)
    folder = Path(tempfile.gettempdir())
    sweep(folder)
    free = shutil.disk_usage(folder).free
    if free < array.nbytes:
        raise InputError(
            f'{file} holds {size:.3g} GiB of compressed patterns, too many for the memory, and {folder} has no room '
            f'for a copy ({free / 2**30:.3g} GiB are free): set the environment variable TMPDIR to a folder on a '
            'larger disk, or save the patterns without compression.'
        )
    logger.info('%s holds %.3g GiB of compressed patterns: they are copied to %s.', file, size, folder)
    copy = folder / temporary_name()
    try:
        with copy.open('xb') as stream:
            copy_hdf5_array(file, name, stream)
    except BaseException as error:
        copy.unlink(missing_ok=True)
        if isinstance(error, OSError):
            reason = error.strerror or error
            raise InputError(f'The patterns of {file} could not be copied to {folder} ({reason}).') from error
        raise
    patterns = PatternFile(copy, array.dtype, shape)
    weakref.finalize(patterns.source, copy.unlink, missing_ok=True)
    return patterns
