"""Ptychodus' workflow folder: ``diffraction.h5`` and ``product.h5``."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ...errors import InputError
from ...limits import physical_memory
from ..scan import RawScan
from .product import scan_from_reconstruct_input

if TYPE_CHECKING:
    from ptychodus.api.product import Product
    from ptychodus.api.reconstruct import ReconstructInput

logger = logging.getLogger(__name__)

DIFFRACTION_FILE = 'diffraction.h5'
PRODUCT_FILE = 'product.h5'

_DAMAGE = (OSError, RuntimeError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, MemoryError)
"""What h5py and Ptychodus raise for files that are no HDF5, are cut short, or hold data of another kind."""

_Loaded = TypeVar('_Loaded')


def load_workflow_folder(folder: Path, product_name: str = PRODUCT_FILE) -> ReconstructInput:
    """Read a workflow folder as Ptychodus does, and pair patterns with positions by scan index.

    Args:
        folder: where the two files lie.
        product_name: another product in the folder than ``product.h5``.

    Raises:
        InputError: one of the two files is missing, is not HDF5, is damaged or lacks a dataset, or no pattern has a
            position; the message names the file.
    """
    from ptychodus.api.io import load_diffraction_data
    from ptychodus.api.reconstruct import prepare_reconstruct_input

    folder = Path(folder)
    product = read_product(folder / product_name)
    patterns = _load(folder / DIFFRACTION_FILE, load_diffraction_data)
    try:
        parameters = prepare_reconstruct_input(patterns, product)
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise InputError(
            f'{folder / DIFFRACTION_FILE} and {folder / product_name} do not go together ({error}): save both from '
            'the same scan.'
        ) from error
    given, paired = patterns.get_indexes().size, len(parameters.diffraction_patterns)
    if paired < given:
        logger.warning(
            '%s: %d of %d patterns have no position in %s and are left out.',
            folder / DIFFRACTION_FILE, given - paired, given, product_name,
        )  # fmt: skip
    return parameters


def read_product(file: Path) -> Product:
    """Read a product of Ptychodus.

    Raises:
        InputError: the file is missing, is not HDF5, is damaged or lacks a dataset.
    """
    from ptychodus.api.io import load_product

    return _load(Path(file), load_product)


def read_workflow_folder(folder: Path) -> RawScan:
    """Read a workflow folder as a validated scan.

    Raises:
        InputError: as :func:`load_workflow_folder` and
            :func:`~ptychopinn_torch_plugin.data.io.product.scan_from_reconstruct_input`.
    """
    return scan_from_reconstruct_input(load_workflow_folder(folder))


def _load(file: Path, loader: Callable[[Path], _Loaded]) -> _Loaded:
    """Call Ptychodus' ``loader``; whatever it says about a file it cannot read becomes one sentence with its name."""
    if not file.is_file():
        raise InputError(f'{file} does not exist: a workflow folder holds {DIFFRACTION_FILE} and {PRODUCT_FILE}.')
    try:
        _refuse_too_large(file)
        return loader(file)
    except KeyError as error:
        reason = error.args[0] if error.args else error
        raise InputError(
            f'{file} lacks something Ptychodus writes ({reason}): save it from Ptychodus again.'
        ) from error
    except InputError:
        raise
    except _DAMAGE as error:
        reason = ' '.join(str(error).split()) or type(error).__name__
        raise InputError(f'{file} cannot be read as HDF5 ({reason}): save or copy it again.') from error


def _refuse_too_large(file: Path) -> None:
    """Raise if the arrays that the HDF5 ``file`` declares do not fit into memory: they need not be in the file."""
    import h5py

    sizes: list[int] = []

    def note(_name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            sizes.append(int(item.size or 0) * int(item.dtype.itemsize))

    with h5py.File(file, 'r') as content:
        content.visititems(note)
    needed, there = sum(sizes) / 2**30, physical_memory() / 2**30
    if needed > there:
        raise InputError(
            f'{file} declares arrays of {needed:.4g} GiB, more than the {there:.4g} GiB of memory of this machine: '
            'crop or bin the patterns, or save fewer.'
        )
