"""What leaves the package as a file: whole, or not at all."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from ...storage.atomic import open_atomically, write_atomically

if TYPE_CHECKING:
    from ptychodus.api.product import Product

_MEMBER_BYTES = 512
"""More than the headers of one array in an archive take."""


def write_product(path: Path, product: Product) -> None:
    """Write ``product`` as Ptychodus' HDF5 file; a kill at any moment leaves the old or the new file whole.

    Raises:
        OutputError: the file cannot be written; the old one is still there.
    """
    from ptychodus.api.io import save_product

    # In memory first: a disk that fills up under HDF5 leaves a library that cannot close its file.
    buffer = io.BytesIO()
    save_product(cast(Path, buffer), product)  # h5py takes either
    write_atomically(path, buffer.getbuffer())


def write_arrays(path: Path, arrays: Mapping[str, npt.ArrayLike]) -> None:
    """Write ``arrays`` as an NPZ file under exactly this name; a kill leaves the old or the new file whole.

    Raises:
        OutputError: the file cannot be written; the old one is still there.
    """
    size = sum(np.asarray(array).nbytes + _MEMBER_BYTES for array in arrays.values())
    with open_atomically(path, size) as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type] # for the stub, one of them could be "allow_pickle"
