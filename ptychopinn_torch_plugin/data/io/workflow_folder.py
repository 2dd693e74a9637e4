"""Ptychodus' workflow folder: ``diffraction.h5`` and ``product.h5``."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from ...errors import InputError
from ..chunks import PatternFile
from ..scan import RawScan
from .hdf5 import Attributes, Hdf5Array, Hdf5Content, read_hdf5
from .large_patterns import is_large, patterns_on_disk
from .product import scan_from_reconstruct_input

if TYPE_CHECKING:
    from ptychodus.api.assemble import AssembledDiffractionData
    from ptychodus.api.product import Product
    from ptychodus.api.reconstruct import ReconstructInput

logger = logging.getLogger(__name__)

DIFFRACTION_FILE = 'diffraction.h5'
PRODUCT_FILE = 'product.h5'

_OLD_ENERGY_ATTRIBUTE = 'probe_energy_eV'
"""The photon energy in products of older versions of Ptychodus, which its reader accepts."""

_WRONG_ARRAYS = (OSError, RuntimeError, TypeError, ValueError, AttributeError, ArithmeticError, IndexError, MemoryError)
"""What Ptychodus raises for arrays of another type or shape than it writes."""


@dataclass(frozen=True)
class DiffractionHeader:
    """What a ``diffraction.h5`` of Ptychodus says about its patterns."""

    patterns: int
    """Number of patterns."""
    pattern_shape: tuple[int, int]
    """Height and width of a pattern in pixels."""
    dtype: str
    """Type of the counts as stored, for example ``uint16``."""
    bad_pixels: int
    """Number of detector pixels marked as not measured."""
    detector_pixel_m: tuple[float, float]
    """Height and width of a detector pixel in metres."""


def load_workflow_folder(
    folder: Path, product_name: str = PRODUCT_FILE, *, large_on_disk: bool = False
) -> ReconstructInput:
    """Read a workflow folder, and pair patterns with positions by scan index as Ptychodus does.

    Args:
        folder: where the two files lie.
        product_name: another product in the folder than ``product.h5``.
        large_on_disk: leave patterns that are too large for the memory on the disk; they are then a
            :class:`~ptychopinn_torch_plugin.data.chunks.PatternFile`, which is indexed like an array.

    Raises:
        InputError: one of the two files is missing, is not HDF5, is damaged, or lacks an array or keeps it elsewhere;
            or no pattern has a position. The message names the file.
    """
    from ptychodus.api.reconstruct import ReconstructInput, prepare_reconstruct_input

    folder = Path(folder)
    product = read_product(folder / product_name)
    patterns, on_disk = _read_patterns(folder / DIFFRACTION_FILE, large_on_disk=large_on_disk)
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
    if on_disk is None:
        return parameters
    counts, bad_pixels = on_disk
    numbers = parameters.diffraction_patterns[:, 0, 0].astype(np.int64)
    return ReconstructInput(cast(Any, counts.select(numbers)), bad_pixels, parameters.product)


def read_workflow_folder(folder: Path) -> RawScan:
    """Read a workflow folder as a validated scan.

    Raises:
        InputError: as :func:`load_workflow_folder` and
            :func:`~ptychopinn_torch_plugin.data.io.product.scan_from_reconstruct_input`.
    """
    return scan_from_reconstruct_input(load_workflow_folder(folder))


def read_product(file: Path) -> Product:
    """Read a product of Ptychodus.

    Raises:
        InputError: the file is missing, is not HDF5, is damaged, or lacks an array or keeps it elsewhere.
    """
    from ptychodus.api.io import ProductFileKeys, load_product

    names = [key.value for key in ProductFileKeys]
    with _named_refusals(file):
        content = read_hdf5(file, [*names, _OLD_ENERGY_ATTRIBUTE], names)
        return load_product(cast(Path, _plain_copy(content)))  # h5py takes either


def read_diffraction_header(file: Path) -> DiffractionHeader:
    """Read shapes, mask and pixel size of a ``diffraction.h5``, but not the patterns.

    Raises:
        InputError: as :func:`read_product`.
    """
    from ptychodus.api.io import DiffractionFileKeys as Key

    names = [key.value for key in Key]
    with _named_refusals(file):
        arrays = read_hdf5(file, names, names, shapes_only=[Key.PATTERNS.value, Key.INDEXES.value]).arrays
        patterns = arrays[Key.PATTERNS]
        number, height, width = patterns.shape
        return DiffractionHeader(
            patterns=number,
            pattern_shape=(height, width),
            dtype=str(patterns.dtype),
            bad_pixels=int(np.count_nonzero(arrays[Key.BAD_PIXELS].get_values())),
            detector_pixel_m=_detector_pixel_m(patterns),
        )


def _read_patterns(
    file: Path, *, large_on_disk: bool
) -> tuple[AssembledDiffractionData, tuple[PatternFile, npt.NDArray[np.bool_]] | None]:
    """Read a ``diffraction.h5`` as Ptychodus does; raises as :func:`read_product`.

    Patterns that stay on the disk are returned with the bad pixels; in their place, the data hold the number of each
    pattern as its one pixel.
    """
    from ptychodus.api.assemble import AssembledDiffractionData
    from ptychodus.api.geometry import PixelGeometry
    from ptychodus.api.io import DiffractionFileKeys as Key

    names = [key.value for key in Key]
    with _named_refusals(file):
        on_disk = None
        if large_on_disk:
            arrays = read_hdf5(file, names, names, shapes_only=[Key.PATTERNS], offsets=[Key.PATTERNS]).arrays
            if is_large(arrays[Key.PATTERNS]):
                on_disk = patterns_on_disk(file, Key.PATTERNS, arrays[Key.PATTERNS])
        if on_disk is None:
            arrays = read_hdf5(file, names, names).arrays
        height_m, width_m = _detector_pixel_m(arrays[Key.PATTERNS])
        photons, bad_pixels = arrays.get(Key.PROBE_PHOTON_COUNTS), arrays[Key.BAD_PIXELS].get_values()
        data = AssembledDiffractionData(
            arrays[Key.INDEXES].get_values(),
            arrays[Key.PATTERNS].get_values() if on_disk is None else np.arange(len(on_disk))[:, None, None],
            PixelGeometry(width_m=width_m, height_m=height_m),
            bad_pixels if on_disk is None else np.zeros((1, 1), dtype=np.bool_),
            probe_photon_counts=None if photons is None else photons.get_values(),
        )
        return data, None if on_disk is None else (on_disk, bad_pixels)


def _detector_pixel_m(patterns: Hdf5Array) -> tuple[float, float]:
    """Return height and width of a detector pixel in metres."""
    from ptychodus.api.io import DiffractionFileKeys as Key

    return patterns.get_number(Key.DETECTOR_PIXEL_HEIGHT), patterns.get_number(Key.DETECTOR_PIXEL_WIDTH)


def _plain_copy(content: Hdf5Content) -> io.BytesIO:
    """Return an HDF5 file in memory that holds ``content`` and nothing else, for Ptychodus' own reader."""
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, 'w') as file:
        _set_attributes(file, content.attributes)
        for name, array in content.arrays.items():
            _set_attributes(file.create_dataset(name, data=array.get_values()), array.attributes)
    return buffer


def _set_attributes(item: Any, attributes: Attributes) -> None:  # noqa: ANN401 - h5py has no types
    item.attrs.update({name: value for name, value in attributes.items() if value is not None})


@contextmanager
def _named_refusals(file: Path) -> Iterator[None]:
    """Turn whatever is wrong with ``file`` into one sentence with its name."""
    if not Path(file).exists():
        raise InputError(f'{file} does not exist: a workflow folder holds {DIFFRACTION_FILE} and {PRODUCT_FILE}.')
    try:
        yield
    except KeyError as error:
        reason = error.args[0] if error.args else error
        raise InputError(
            f'{file} lacks something Ptychodus writes ({reason}): save it from Ptychodus again.'
        ) from error
    except InputError:
        raise
    except _WRONG_ARRAYS as error:
        reason = ' '.join(str(error).split()) or type(error).__name__
        raise InputError(f'{file} cannot be read as HDF5 ({reason}): save or copy it again.') from error
