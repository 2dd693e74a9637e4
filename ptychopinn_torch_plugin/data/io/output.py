"""Write products and arrays to files. A file is replaced completely or not at all."""

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
"""Upper bound of the headers of one array in an archive."""


def write_product(path: Path, product: Product) -> None:
    """Write ``product`` as Ptychodus' HDF5 file; if the process is killed, the old or the new file is there in whole.

    Raises:
        OutputError: the file cannot be written; the old one is still there.
    """
    from ptychodus.api.io import save_product

    # In memory first, because the HDF5 library cannot close its file on a full disk.
    buffer = io.BytesIO()
    save_product(cast(Path, buffer), product)  # h5py takes either
    write_atomically(path, buffer.getbuffer())


def write_arrays(path: Path, arrays: Mapping[str, npt.ArrayLike]) -> None:
    """Write ``arrays`` as an NPZ file under exactly this name.

    If the process is killed, the old or the new file is there in whole.

    Raises:
        OutputError: the file cannot be written; the old one is still there.
    """
    size = sum(np.asarray(array).nbytes + _MEMBER_BYTES for array in arrays.values())
    with open_atomically(path, size) as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type] # for the stub, one of them could be "allow_pickle"
