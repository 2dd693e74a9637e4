"""Input of the commands: workflow folders, products with their patterns, training files, and folders of several."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..data.diffraction_quantity import DiffractionQuantity
from ..data.io.conversion import BeamGeometry, geometry_of_product, read_npz_geometry
from ..data.io.npz import read_training_npz
from ..data.io.product import scan_from_reconstruct_input
from ..data.io.workflow_folder import DIFFRACTION_FILE, PRODUCT_FILE, load_workflow_folder
from ..data.scan import RawScan
from ..errors import InputError

if TYPE_CHECKING:
    from ptychodus.api.reconstruct import ReconstructInput

logger = logging.getLogger(__name__)

NPZ_SUFFIX: Final = '.npz'
PRODUCT_SUFFIXES: Final = ('.h5', '.hdf5')
HELP: Final = (
    f'a workflow folder ({DIFFRACTION_FILE} and {PRODUCT_FILE}), a product with {DIFFRACTION_FILE} beside it, or a '
    'training file (.npz)'
)
"""Definition of a scan in ``--help``."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """A scan, and the file or folder it was read from."""

    path: Path
    scan: RawScan
    geometry: BeamGeometry
    """Complete for a folder or a product; for a training file what is stored in it."""
    parameters: ReconstructInput | None
    """The scan as Ptychodus read it, None for a training file."""


def load_scan(
    path: Path,
    read_as: DiffractionQuantity = 'auto',
    nphotons: float | None = None,
    *,
    large_on_disk: bool = False,
) -> Loaded:
    """Read one scan.

    Args:
        path: workflow folder, product file beside its ``diffraction.h5``, or training file.
        read_as: what ``diff3d`` of a training file holds, see
            :func:`~ptychopinn_torch_plugin.data.io.npz.read_training_npz`.
        nphotons: mean photons of a pattern, for amplitudes that were normalised.
        large_on_disk: leave patterns of a folder that are too large for the memory on the disk.

    Raises:
        InputError: the scan does not exist or cannot be used.
    """
    if path.suffix == NPZ_SUFFIX and not path.is_dir():
        scan = read_training_npz(path, counts_are=read_as, nphotons=nphotons)
        return Loaded(path, scan, read_npz_geometry(path), None)
    if path.is_dir() or path.suffix in PRODUCT_SUFFIXES:
        folder, product_name = (path, PRODUCT_FILE) if path.is_dir() else (path.parent, path.name)
        parameters = load_workflow_folder(folder, product_name, large_on_disk=large_on_disk)
        scan = scan_from_reconstruct_input(parameters)
        return Loaded(path, scan, geometry_of_product(parameters.product, folder / DIFFRACTION_FILE), parameters)
    raise InputError(f'{path} is not a scan: give {HELP}.')


def find_scans(path: Path) -> list[Path]:
    """Return the scans that a path means, sorted by name.

    A workflow folder, a product or a training file is one scan; any other folder means the training files (NPZ) and
    workflow folders in it.

    Raises:
        InputError: a folder holds no scan.
    """
    if not path.is_dir() or is_workflow_folder(path):
        return [path]
    found = [item for item in sorted(path.iterdir()) if item.suffix == NPZ_SUFFIX or is_workflow_folder(item)]
    if not found:
        raise InputError(
            f'{path} holds no scan: neither {DIFFRACTION_FILE} with {PRODUCT_FILE}, nor training files (.npz), nor '
            'workflow folders were found in it.'
        )
    logger.info('%s: %d scans, %s.', path, len(found), ', '.join(item.name for item in found))
    return found


def load_scans(
    paths: Sequence[Path], read_as: DiffractionQuantity = 'auto', nphotons: float | None = None
) -> list[RawScan]:
    """Read all scans that ``paths`` mean, in their order, see :func:`find_scans` and :func:`load_scan`."""
    return [load_scan(item, read_as, nphotons).scan for path in paths for item in find_scans(path)]


def is_workflow_folder(path: Path) -> bool:
    """Return whether ``path`` is a folder with patterns and a product in it."""
    return (path / DIFFRACTION_FILE).is_file() and (path / PRODUCT_FILE).is_file()
