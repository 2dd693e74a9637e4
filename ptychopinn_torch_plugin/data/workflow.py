"""Ptychodus' workflow folder: ``diffraction.h5`` and ``product.h5``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ..errors import InputError
from .product import scan_from_reconstruct_input
from .scan import RawScan

if TYPE_CHECKING:
    from ptychodus.api.reconstruct import ReconstructInput

DIFFRACTION_FILE = 'diffraction.h5'
PRODUCT_FILE = 'product.h5'

_Loaded = TypeVar('_Loaded')


def load_workflow_folder(folder: Path) -> ReconstructInput:
    """Read a workflow folder as Ptychodus does, and pair patterns with positions by scan index.

    Raises:
        InputError: one of the two files is missing, is not HDF5, is damaged or lacks a dataset, or no pattern has a
            position; the message names the file.
    """
    from ptychodus.api.io import load_diffraction_data, load_product
    from ptychodus.api.reconstruct import prepare_reconstruct_input

    folder = Path(folder)
    product = _load(folder / PRODUCT_FILE, load_product)
    patterns = _load(folder / DIFFRACTION_FILE, load_diffraction_data)
    try:
        return prepare_reconstruct_input(patterns, product)
    except ValueError as error:
        raise InputError(
            f'{folder / DIFFRACTION_FILE} and {folder / PRODUCT_FILE} do not go together ({error}): save both from '
            'the same scan.'
        ) from error


def read_workflow_folder(folder: Path) -> RawScan:
    """Read a workflow folder as a validated scan.

    Raises:
        InputError: as :func:`load_workflow_folder` and
            :func:`~ptychopinn_torch_plugin.data.product.scan_from_reconstruct_input`.
    """
    return scan_from_reconstruct_input(load_workflow_folder(folder))


def _load(file: Path, loader: Callable[[Path], _Loaded]) -> _Loaded:
    """Call Ptychodus' ``loader``; whatever it says about a file it cannot read becomes one sentence with its name."""
    if not file.is_file():
        raise InputError(f'{file} does not exist: a workflow folder holds {DIFFRACTION_FILE} and {PRODUCT_FILE}.')
    try:
        return loader(file)
    except KeyError as error:
        reason = error.args[0] if error.args else error
        raise InputError(
            f'{file} lacks something Ptychodus writes ({reason}): save it from Ptychodus again.'
        ) from error
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        # h5py raises all four for files that are no HDF5, cut short, or hold data of another kind.
        raise InputError(f'{file} cannot be read as HDF5 ({error}): save or copy it again.') from error
